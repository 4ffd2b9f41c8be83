# SPDX-License-Identifier: Apache-2.0
"""Recurrent layers over padded sequences, and their state in the place of transformers' cache."""

from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from transformers.cache_utils import Cache, CacheLayerMixin

from .dropout import Dropout
from .packed_linear import onednn_has
from .transformers_differences import GradientCheckpointingLayer

CELLS = {"tanh": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}
STEPS = {"RNN_TANH": torch.rnn_tanh_cell, "GRU": torch.gru_cell, "LSTM": torch.lstm_cell}
CPU_HAS_BFLOAT16 = onednn_has(torch.bfloat16)  # a constant, because torch.compile cannot trace the question

Tensors = tuple[torch.Tensor, ...]


class Lengths(NamedTuple):
    """The lengths of padded sentences, the longest first, as torch packs them.

    Args:
        lengths: `(batch)` on the CPU; torch reads them there, and refuses 0.
        rows, places: sentence `rows[i]` comes i-th, and sentence i comes `places[i]`-th, `(batch)` on the device.
    """

    lengths: torch.Tensor
    rows: torch.Tensor
    places: torch.Tensor


STATE = ("hidden", "cell_state")  # the latter only in LSTMs


def left_align_indices(mask: torch.Tensor, reverse: bool) -> torch.Tensor:
    """Indices that move real tokens to the front, in reverse order if asked, and padding to the end.

    `mask` `(batch, length)`, true for real tokens → `(batch, length)`.
    """
    positions = torch.arange(mask.shape[1], device=mask.device)
    return torch.where(mask, -positions if reverse else positions, mask.shape[1]).argsort(dim=1, stable=True)


def gather_positions(states: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """`(batch, length, width)` at the positions `indices` `(batch, length)`."""
    return states.gather(1, indices[..., None].expand_as(states))


def masked_update(mask: torch.Tensor, new: torch.Tensor, old: torch.Tensor | None) -> torch.Tensor:
    """`new` for the sentences where `mask` `(batch)` is true, elsewhere `old`, or zeros; both `(batch, …)`."""
    old = torch.zeros_like(new) if old is None else old.to(new.dtype)
    return torch.where(mask.view(-1, *[1] * (new.dim() - 1)), new, old)


def scan_rnn(
    recurrence: nn.RNNBase, inputs: torch.Tensor, state: Tensors, mask: torch.Tensor | None, reverse: bool
) -> tuple[torch.Tensor, Tensors]:
    """Compute `recurrence` by torch's `scan`, whose graph fits any length: for torch.compile, torch.export and ONNX.

    torch's own layer fixes the length in a graph, and a graph cannot hold a packed sequence. Here each step keeps the
    state of the sentences that are padded there.

    Args:
        inputs: `(batch, length, input_size)`.
        state: hidden state and, for LSTMs, cell state, `(directions, batch, hidden_size)` each; empty: zeros.
        mask: `(batch, length)`, true for real tokens; `None`: all are real.
        reverse: begin at the end. A bidirectional layer reads in both directions anyway.

    Returns:
        The outputs `(batch, length, directions * hidden_size)`, zeros for padding, and the state after the last token.
    """
    from torch._higher_order_ops import scan  # a prototype in torch 2.13, imported only where it is needed

    is_lstm, directions = isinstance(recurrence, nn.LSTM), 2 if recurrence.bidirectional else 1
    if not state:  # two tensors for an LSTM: scan refuses one tensor twice
        state = tuple(inputs.new_zeros(directions, inputs.shape[0], recurrence.hidden_size) for _ in range(1 + is_lstm))
    if mask is None:
        mask = inputs.new_ones(inputs.shape[:2], dtype=torch.bool)

    def read(direction):  # without types, which torch.compile could not trace
        """One direction's state after its last token, and its outputs `(length, batch, hidden_size)`."""
        weights = recurrence.all_weights[direction]

        def step(before, inputs_now):
            token, is_real = inputs_now  # (batch, input_size), (batch)
            after = STEPS[recurrence.mode](token, before if is_lstm else before[0], *weights)
            after = after if is_lstm else (after,)
            after = tuple(torch.where(is_real[:, None], *pair) for pair in zip(after, before, strict=True))
            return after, after[0].clone()

        first = tuple(part[direction] for part in state)
        return scan(step, first, (inputs.transpose(0, 1), mask.transpose(0, 1)), reverse=reverse or direction == 1)

    finals, outputs = zip(*[read(direction) for direction in range(directions)], strict=True)
    outputs = torch.cat(outputs, dim=-1).transpose(0, 1).masked_fill(~mask[:, :, None], 0.0)  # (batch, length, width)
    return outputs, tuple(torch.stack(part) for part in zip(*finals, strict=True))


class RecurrentLayer(GradientCheckpointingLayer):
    """Dropout, one of torch's recurrent layers, and a residual connection if the config has it."""

    def __init__(self, config, input_size: int, bidirectional: bool):
        super().__init__()
        self.directions = 2 if bidirectional else 1
        self.recurrence = CELLS[config.cell](
            input_size, config.hidden_size, batch_first=True, bidirectional=bidirectional
        )
        self.has_residual = config.residual and input_size == self.directions * config.hidden_size
        self.dropout = Dropout(config.dropout)

    def forward(
        self, inputs: torch.Tensor, lengths: Lengths | None, mask: torch.Tensor | None, reverse: bool, *state: Any
    ) -> Tensors:
        """Read `inputs` `(batch, length, input_size)`.

        Args:
            lengths: the number of real tokens, which stand first; `None`: all are real.
            mask, reverse: as for `scan_rnn`, and only while compiling; otherwise `inputs` come in reading order.
            state: hidden state and, for LSTMs, cell state, `(batch, directions * hidden_size)` each; none: zeros.

        Returns:
            The outputs `(batch, length, directions * hidden_size)`, then the state after the last real token.
        """
        # torch has the directions first; everything here, and transformers' beam search, has the batch first.
        state = tuple(part.unflatten(1, (self.directions, -1)).transpose(0, 1).contiguous() for part in state)
        outputs = self.dropout(inputs)
        # On a GPU autocast would run cuDNN in float16, even if bfloat16 was asked for, without scaling the loss; and a
        # CPU without bfloat16 has no LSTM in it. There the recurrence computes in the precision of its weights.
        on_cpu = inputs.device.type == "cpu"
        follows_autocast = on_cpu and (CPU_HAS_BFLOAT16 or not torch.is_autocast_enabled("cpu"))
        with nullcontext() if follows_autocast else torch.autocast(inputs.device.type, enabled=False):
            if not follows_autocast:
                dtype = self.recurrence.weight_ih_l0.dtype
                outputs, state = outputs.to(dtype), tuple(part.to(dtype) for part in state)
            if torch.compiler.is_compiling() and (mask is not None or outputs.shape[1] > 1):
                outputs, state = scan_rnn(self.recurrence, outputs, state, mask, reverse)
            else:
                if lengths is not None:
                    # Sorted here and not there, where the host would wait for the device in every layer.
                    outputs = outputs.index_select(0, lengths.rows)
                    outputs = pack_padded_sequence(outputs, lengths.lengths, batch_first=True)
                    state = tuple(part.index_select(1, lengths.rows) for part in state)
                # torch wants and returns a tuple for LSTMs only.
                outputs, state = self.recurrence(outputs, state if len(state) == 2 else state[0] if state else None)
                if lengths is not None:
                    outputs, _ = pad_packed_sequence(outputs, batch_first=True, total_length=inputs.shape[1])
                state = state if isinstance(state, tuple) else (state,)
                if lengths is not None:
                    outputs = outputs.index_select(0, lengths.places)
                    state = tuple(part.index_select(1, lengths.places) for part in state)
        if self.has_residual:
            outputs = inputs + outputs
        return outputs, *(part.transpose(0, 1).flatten(1) for part in state)


class RecurrentStack(nn.Module):
    """Stacked recurrent layers that skip padding, wherever it stands."""

    def __init__(self, config, input_size: int, num_layers: int, bidirectional: bool):
        super().__init__()
        width = config.hidden_size * (2 if bidirectional else 1)
        sizes = [input_size] + [width] * (num_layers - 1)
        self.layers = nn.ModuleList([RecurrentLayer(config, size, bidirectional) for size in sizes])

    def forward(
        self,
        inputs: torch.Tensor,
        state: dict[str, torch.Tensor],
        mask: torch.Tensor | None = None,
        reverse: bool = False,
        all_layers: bool = False,
    ) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
        """Read `inputs` `(batch, length, input_size)`.

        Args:
            state: `STATE` before, `(batch, num_layers, width)` each; missing: zeros.
            mask: `(batch, length)`, true for real tokens, on any device; `None`: all are real. For a mask on the CPU
                the host need not wait for the device.
            reverse: begin at the last real token, which needs a `mask`. The outputs keep the places of their tokens.
            all_layers: return the outputs of all layers, not only of the last.

        Returns:
            The outputs, `(batch, length, width)` for each layer, and `STATE` after the last token read.
        """
        # A compiled graph can neither ask whether there is padding nor pack it: its layers skip padding by themselves.
        is_compiling = torch.compiler.is_compiling()
        lengths, order, inverse = None, None, None
        if mask is not None and not is_compiling:
            real = mask.sum(dim=1).cpu()  # (batch)
            if bool((real < mask.shape[1]).any()):
                # torch refuses a length of 0. A row without real tokens reads one position, which is undone below.
                sorted_lengths, rows = real.clamp(min=1).sort(descending=True)
                rows = rows.to(inputs.device, non_blocking=True)
                lengths = Lengths(sorted_lengths, rows, rows.argsort())
            mask = mask.to(inputs.device, non_blocking=True)
        has_padding = lengths is not None
        if has_padding or (reverse and not is_compiling):
            assert mask is not None  # the encoder, which alone may begin at the end, has always one
            order = left_align_indices(mask, reverse)  # (batch, length)
            inverse = order.argsort(dim=1)
            inputs = gather_positions(inputs, order)
        before = [state[name] for name in STATE if name in state]
        outputs, finals = [], []
        for index, layer in enumerate(self.layers):
            layer_state = (part[:, index] for part in before)
            # (batch, length, width)
            inputs, *final = layer(inputs, lengths, mask if is_compiling else None, reverse, *layer_state)
            finals.append(final)
            is_last = index == len(self.layers) - 1
            if all_layers or is_last:
                outputs.append(inputs if inverse is None else gather_positions(inputs, inverse))
            if all_layers and order is not None and not is_last:
                inputs = gather_positions(outputs[-1], order)  # from the returned tensor, which then has a gradient
        after = {name: torch.stack(part, dim=1) for name, part in zip(STATE, zip(*finals, strict=True), strict=False)}
        if lengths is not None and mask is not None:
            has_read = mask.any(dim=1)  # (batch)
            after = {name: masked_update(has_read, part, state.get(name)) for name, part in after.items()}
        return outputs, after


class RecurrentState(CacheLayerMixin):
    """The state of a recurrent decoder, in the place of a cache's layer; it never grows.

    Attributes:
        tensors: `STATE`, `(batch, num_decoder_layers, hidden_size)` each; with the input feeding of Luong et al.
            "attentional" too, `(batch, embedding_size)`.
        source_keys: the attention's keys, `(batch, source_length, hidden_size)`. All beams of a sentence share them, so
            beam search does not reorder them.
        length: number of tokens read.
    """

    def __init__(self):
        super().__init__()
        self.tensors: dict[str, torch.Tensor] = {}
        self.source_keys: torch.Tensor | None = None
        self.length = 0

    def update(self, *args, **kwargs):
        raise TypeError("a recurrent state has no keys and values")

    lazy_initialization = update

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        return self.length

    def get_max_length(self) -> int:
        return -1  # transformers' word for "no limit"

    def reset(self) -> None:
        self.tensors, self.source_keys, self.length = {}, None, 0

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
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
    """transformers' `Cache` with one layer: the whole state of a recurrent decoder."""

    def __init__(self):
        super().__init__(layers=[RecurrentState()])

    @property
    def state(self) -> RecurrentState:
        (state,) = self.layers  # not an attribute, which a copy made field by field would have apart from its layers
        assert isinstance(state, RecurrentState)
        return state
