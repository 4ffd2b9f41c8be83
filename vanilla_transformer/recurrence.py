# SPDX-License-Identifier: Apache-2.0
"""Recurrent layers over padded sequences, and their state in the place of transformers' cache."""

from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from transformers.cache_utils import Cache, CacheLayerMixin
from transformers.modeling_layers import GradientCheckpointingLayer

from .dropout import Dropout
from .packed_linear import onednn_has

CELLS = {"tanh": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}
CPU_HAS_BFLOAT16 = onednn_has(torch.bfloat16)  # here, for a graph cannot ask
STEPS = {"RNN_TANH": torch.rnn_tanh_cell, "GRU": torch.gru_cell, "LSTM": torch.lstm_cell}


def reverse_padded(mask: torch.Tensor, reverse: bool) -> torch.Tensor:
    """Positions in the order of reading: the real ones from the first (or the last, if `reverse`), then the padding.

    `mask` `(batch, length)`, true for real tokens → `(batch, length)`.
    """
    positions = torch.arange(mask.shape[1], device=mask.device)
    return torch.where(mask, -positions if reverse else positions, mask.shape[1]).argsort(dim=1, stable=True)


def take(states: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """`(batch, length, width)` at `positions` `(batch, length)`."""
    return states.gather(1, positions[..., None].expand_as(states))


def _to(state, dtype: torch.dtype):
    """torch's state of a recurrence, a tensor or two or none, in another dtype."""
    if isinstance(state, tuple):
        return tuple(part.to(dtype) for part in state)
    return state if state is None else state.to(dtype)


def scanned(
    recurrence: nn.RNNBase, inputs: torch.Tensor, state, mask: torch.Tensor | None, reverse: bool
) -> tuple[torch.Tensor, Any]:
    """What `recurrence` computes, as a graph of any length: for torch.compile, torch.export and ONNX.

    torch's own fixes the length in a graph, and a packed sequence cannot be in one. Here padding is stepped over.

    Args:
        inputs, state: as for torch's layer with batch_first.
        mask: `(batch, length)`, true for real tokens; `None`: all are real.
        reverse: begin at the end. A bidirectional layer has both anyway.

    Returns:
        As torch's layer; the outputs of padding are zeros.
    """
    from torch._higher_order_ops import scan  # a prototype in torch 2.13: imported by those alone who need it

    is_lstm, directions = isinstance(recurrence, nn.LSTM), 2 if recurrence.bidirectional else 1
    if state is None:  # not one tensor twice, which scan refuses
        parts = tuple(inputs.new_zeros(directions, inputs.shape[0], recurrence.hidden_size) for _ in range(1 + is_lstm))
    else:
        parts = state if is_lstm else (state,)
    if mask is None:
        mask = inputs.new_ones(inputs.shape[:2], dtype=torch.bool)

    def read(direction: int) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
        """The state after the last token of one direction, and its outputs `(length, batch, hidden_size)`."""
        suffix = "_reverse" if direction else ""
        names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
        weights = [getattr(recurrence, f"{name}{suffix}") for name in names]

        def step(before: tuple[torch.Tensor, ...], now: tuple[torch.Tensor, torch.Tensor]):
            token, is_real = now  # (batch, input_size), (batch)
            after = STEPS[recurrence.mode](token, before if is_lstm else before[0], *weights)
            after = after if is_lstm else (after,)
            after = tuple(torch.where(is_real[:, None], *pair) for pair in zip(after, before, strict=True))
            return after, after[0].clone()

        first = tuple(part[direction] for part in parts)
        return scan(step, first, (inputs.transpose(0, 1), mask.transpose(0, 1)), reverse=reverse or direction == 1)

    finals, outputs = zip(*[read(direction) for direction in range(directions)], strict=True)
    outputs = torch.cat(outputs, dim=-1).transpose(0, 1).masked_fill(~mask[:, :, None], 0.0)  # (batch, length, width)
    final = tuple(torch.stack(part) for part in zip(*finals, strict=True))
    return outputs, final if is_lstm else final[0]


class RecurrentLayer(GradientCheckpointingLayer):
    """Dropout, one layer of torch's recurrence, and the residual connection if there is one."""

    def __init__(self, config, input_size: int, bidirectional: bool):
        super().__init__()
        self.directions = 2 if bidirectional else 1
        self.recurrence = CELLS[config.cell](
            input_size, config.hidden_size, batch_first=True, bidirectional=bidirectional
        )
        self.has_residual = config.residual and input_size == self.directions * config.hidden_size
        self.dropout = Dropout(config.dropout)

    def forward(
        self,
        inputs: torch.Tensor,
        hidden: torch.Tensor | None = None,
        memory: torch.Tensor | None = None,
        lengths: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
        reverse: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Read `inputs` `(batch, length, input_size)` from the state `hidden`, `memory` `(batch, width)`.

        Args:
            memory: the cell state of an LSTM; `None` with other cells.
            lengths: `(batch)` on the CPU, how many of the positions are real; `None`: all.
            mask, reverse: as for `scanned`, and only in a graph; elsewhere `inputs` come in the order of reading.

        Returns:
            The outputs `(batch, length, width)` and the state after the last real position.
        """
        state = None if hidden is None else self._as_torch(hidden)
        if memory is not None:
            state = (state, self._as_torch(memory))
        outputs = self.dropout(inputs)
        on_cpu = inputs.device.type == "cpu"
        follows_autocast = on_cpu and (CPU_HAS_BFLOAT16 or not torch.is_autocast_enabled("cpu"))
        with nullcontext() if follows_autocast else torch.autocast(inputs.device.type, enabled=False):
            # On a GPU autocast means float16 under cuDNN, even if asked for bfloat16, and nobody would scale the loss;
            # and a CPU without bfloat16 has no LSTM in it. There the recurrence has the precision of its weights.
            if not follows_autocast:
                dtype = self.recurrence.weight_ih_l0.dtype
                outputs, state = outputs.to(dtype), _to(state, dtype)
            if torch.compiler.is_compiling() and (mask is not None or outputs.shape[1] > 1):
                outputs, state = scanned(self.recurrence, outputs, state, mask, reverse)
            elif lengths is None:
                outputs, state = self.recurrence(outputs, state)
            else:
                packed = pack_padded_sequence(outputs, lengths, batch_first=True, enforce_sorted=False)
                packed, state = self.recurrence(packed, state)
                outputs, _ = pad_packed_sequence(packed, batch_first=True, total_length=inputs.shape[1])
        if self.has_residual:
            outputs = inputs + outputs
        hidden, memory = state if isinstance(state, tuple) else (state, None)
        assert hidden is not None
        # torch has the directions first; everything else here, and in transformers' beam search, the batch.
        return outputs, self._batch_first(hidden), None if memory is None else self._batch_first(memory)

    def _as_torch(self, state: torch.Tensor) -> torch.Tensor:
        """`(batch, directions * hidden_size)` → `(directions, batch, hidden_size)`."""
        return state.unflatten(1, (self.directions, -1)).transpose(0, 1).contiguous()

    @staticmethod
    def _batch_first(state: torch.Tensor) -> torch.Tensor:
        """`(directions, batch, hidden_size)` → `(batch, directions * hidden_size)`."""
        return state.transpose(0, 1).flatten(1)


class RecurrentStack(nn.Module):
    """Recurrent layers one upon the other; padding, wherever it stands, is not read."""

    def __init__(self, config, input_size: int, num_layers: int, bidirectional: bool):
        super().__init__()
        width = config.hidden_size * (2 if bidirectional else 1)
        sizes = [input_size] + [width] * (num_layers - 1)
        self.layers = nn.ModuleList([RecurrentLayer(config, size, bidirectional) for size in sizes])

    def forward(
        self,
        inputs: torch.Tensor,
        hidden: torch.Tensor | None = None,
        memory: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
        reverse: bool = False,
        every_layer: bool = False,
    ) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor | None]:
        """Read `inputs` `(batch, length, input_size)`.

        Args:
            hidden, memory: the state before, `(batch, num_layers, width)`; `None`: zeros.
            mask: `(batch, length)`, true for real tokens; `None`: all are real.
            reverse: begin at the last real token; the outputs stand at their tokens' places all the same.
            every_layer: return the outputs of all layers, not only of the last.

        Returns:
            The outputs, `(batch, length, width)` for each layer, and the state after the last token read,
            `(batch, num_layers, width)`; its second part is `None` but for LSTMs.
        """
        order = place = lengths = None
        # A graph can neither ask whether there is padding nor pack it: there each layer steps over it by itself.
        in_graph = torch.compiler.is_compiling()
        has_padding = mask is not None and not in_graph and not bool(mask.all())
        if has_padding or (reverse and not in_graph):
            if mask is None:
                mask = torch.ones(inputs.shape[:2], dtype=torch.bool, device=inputs.device)
            order = reverse_padded(mask, reverse)  # (batch, length)
            place = order.argsort(dim=1)  # where each position is read
            inputs = take(inputs, order)
            # A row without any real token, which torch would refuse, reads one position, which is undone below.
            lengths = mask.sum(dim=1).clamp(min=1).cpu() if has_padding else None  # (batch)
        outputs, hiddens, memories = [], [], []
        states = inputs
        for index, layer in enumerate(self.layers):
            states, layer_hidden, layer_memory = layer(
                states,
                None if hidden is None else hidden[:, index],
                None if memory is None else memory[:, index],
                lengths,
                mask if in_graph else None,
                reverse,
            )  # (batch, length, width)
            hiddens.append(layer_hidden)
            memories.append(layer_memory)
            is_last = index == len(self.layers) - 1
            if every_layer or is_last:
                outputs.append(states if place is None else take(states, place))
            if every_layer and order is not None and not is_last:
                states = take(outputs[-1], order)  # what is returned is what the next layer reads, and has its gradient
        new_hidden = torch.stack(hiddens, dim=1)  # (batch, num_layers, width)
        new_memory = None if memories[0] is None else torch.stack(memories, dim=1)
        if lengths is not None and mask is not None:
            has_read = mask.any(dim=1)  # (batch)
            new_hidden = read_positions(has_read, new_hidden, hidden)
            new_memory = None if new_memory is None else read_positions(has_read, new_memory, memory)
        return outputs, new_hidden, new_memory


def read_positions(has_read: torch.Tensor, new: torch.Tensor, old: torch.Tensor | None) -> torch.Tensor:
    """`new` for the sentences that have read something, else `old`, or zeros; `(batch, …)`, `has_read` `(batch)`."""
    old = torch.zeros_like(new) if old is None else old.to(new.dtype)
    return torch.where(has_read.view(-1, *[1] * (new.dim() - 1)), new, old)


class RecurrentState(CacheLayerMixin):
    """What a recurrent decoder knows of the target so far, in the place of a cache's layer; it never grows.

    `tensors` are whatever the decoder keeps between steps, by name, batch first.
    """

    def __init__(self):
        super().__init__()
        self.tensors: dict[str, torch.Tensor] = {}
        # Of the source, and the same for all beams of a sentence: not reordered with them, as the encoder's outputs
        # beside it are not.
        self.source_keys: torch.Tensor | None = None
        self.length = 0  # tokens read

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        raise TypeError("a recurrent state has no keys and values")

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs):
        raise TypeError("a recurrent state has no keys and values")

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        return self.length

    def get_max_length(self) -> int:
        return -1  # transformers' word for "no limit"

    def reset(self) -> None:
        self.tensors, self.source_keys, self.length = {}, None, 0

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """The state of each beam goes where the beam search puts it; beams stay with their sentence."""
        self.tensors = {name: tensor.index_select(0, beam_idx) for name, tensor in self.tensors.items()}

    def batch_repeat_interleave(self, repeats: int) -> None:
        self.tensors = {name: tensor.repeat_interleave(repeats, dim=0) for name, tensor in self.tensors.items()}
        if self.source_keys is not None:
            self.source_keys = self.source_keys.repeat_interleave(repeats, dim=0)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        self.tensors = {name: tensor[indices] for name, tensor in self.tensors.items()}
        if self.source_keys is not None:
            self.source_keys = self.source_keys[indices]


class RecurrentCache(Cache):
    """transformers' `Cache` with one entry: the decoder's whole state."""

    def __init__(self):
        super().__init__(layers=[RecurrentState()])

    @property
    def state(self) -> RecurrentState:
        (state,) = self.layers  # looked up, so that a copy made field by field has one state as well
        assert isinstance(state, RecurrentState)
        return state
