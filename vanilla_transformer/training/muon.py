# SPDX-License-Identifier: Apache-2.0
"""An experiment: Muon (Jordan 2024) for the matrices of the layers, and Adam for all other weights."""

from typing import Any

import torch
from transformers import PreTrainedModel


class MuonWithAdam(torch.optim.Optimizer):
    """torch's two optimizers as one, whose first group is Muon's.

    Muon's updates have the RMS of Adam's (Moonshot's 0.2 * sqrt(max(rows, columns))), so that one schedule serves both.
    """

    found_inf: torch.Tensor | None = None  # as a GradScaler tells a fused Adam; Muon's host waits for it

    def __init__(self, model: PreTrainedModel, lr: float, muon_scale: float, **of_adam: Any):
        embeddings = [model.get_input_embeddings(), model.get_output_embeddings()]
        others = {weight for module in embeddings if module is not None for weight in module.parameters()}
        others |= {weight for name, weight in model.named_parameters() if weight.ndim != 2 or "embed" in name}
        matrices = [weight for weight in model.parameters() if weight not in others]
        others = [weight for weight in model.parameters() if weight in others]
        self.muon = torch.optim.Muon(matrices, lr=lr * muon_scale, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
        self.adam = torch.optim.Adam(others, lr=lr, **of_adam)
        super().__init__([*self.muon.param_groups, *self.adam.param_groups], self.muon.defaults | self.adam.defaults)

    def step(self, closure: None = None) -> None:
        assert closure is None
        for optimizer, group in zip((self.muon, self.adam), self.param_groups, strict=True):
            optimizer.param_groups, optimizer.state = [group], self.state  # a loaded state has others
        skipped = self.found_inf
        if skipped is not None:
            self.adam.found_inf = skipped  # pyright: ignore[reportAttributeAccessIssue] -- an Adam reads it
        self.adam.step()
        if skipped is None or not skipped:
            self.muon.step()
