# SPDX-License-Identifier: Apache-2.0
"""The outputs of the projection that a batch may choose from, packed for this batch alone."""

from ctypes import byref

import torch

from vanilla_transformer.inference.native import structures
from vanilla_transformer.inference.native.memory import BufferPool


class PackedShortlist:
    """A copy of some outputs of a packed map, with a mask for each sentence.

    A copy of all outputs gives the same bits as the map. Otherwise an output may be summed in another order.

    Args:
        projection: the map to the whole vocabulary.
        group, dtype: inputs of a step of the kernels, and the type of the packed weights.
        panel_width: outputs that the kernels compute together.
        allowed: whether a sentence may have a token, `(sentences, vocab_size)`.
    """

    def __init__(
        self,
        projection: structures.Linear,
        buffers: BufferPool,
        group: int,
        dtype: torch.dtype,
        panel_width: int,
        allowed: torch.Tensor,
    ):
        self.vocab_size = allowed.shape[1]
        self.tokens = allowed.any(dim=0).nonzero()[:, 0]  # (outputs), ascending
        self.mask = torch.zeros(len(allowed), len(self.tokens))
        self.mask.masked_fill_(~allowed[:, self.tokens], -torch.inf)
        panels = -(-len(self.tokens) // panel_width)
        shape = panels, -(-projection.inputs // group), panel_width, group
        self.weight = buffers.take(self, *shape, dtype=dtype)
        self.weight[-1].zero_()  # the last panel may have room for more outputs
        names = [name for name in ("scale", "sums", "bias") if getattr(projection, name)]
        self.vectors = {name: torch.zeros(panels * panel_width, dtype=torch.int32) for name in names}  # 32 bits each
        addresses = {name: vector.data_ptr() for name, vector in self.vectors.items()}
        selected = structures.Linear(
            self.weight.data_ptr(),
            inputs=projection.inputs,
            outputs=len(self.tokens),
            is_bfloat16=projection.is_bfloat16,
            **addresses,
        )
        structures.load_library().select_outputs(byref(projection), self.tokens.data_ptr(), byref(selected))
        self.structure = structures.Shortlist(selected, self.tokens.data_ptr(), self.mask.data_ptr())

    def scatter(self, logits: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
        """Logits of the batch's tokens, `(rows, outputs)`, at their places among all, -inf elsewhere.

        Args:
            slots: the sentence of each row, `(rows)`.

        Returns:
            `(rows, vocab_size)`.
        """
        everything = logits.new_full((len(logits), self.vocab_size), -torch.inf)
        everything[:, self.tokens] = logits + self.mask[slots]
        return everything
