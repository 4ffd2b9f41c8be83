# SPDX-License-Identifier: Apache-2.0
"""The RNN's decoder, one token at a time: the same function as the module, laid out for speed.

The trained module keeps its clear form; `build_decoder` makes this from it. It avoids the overhead of torch's recurrent
layers, which are made for sequences, and computes both halves of a cell in one product where the cell allows it. The
source's keys are computed once for a sentence, whose beams are rows of one query.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .attention import AdditiveAttention, MultiplicativeAttention, attend_with_scores
from .decoder import TorchDecoder, compact_rows
from .packed_linear import PackedLinear, Precision, quantized_linears

Product = Callable[[PackedLinear, torch.Tensor], torch.Tensor]  # `PackedLinear.forward` or `PackedLinear.gemv`
State = tuple[torch.Tensor, ...]  # (h,) or (h, c), each (sentences * beams, hidden_size)


class ConcatenatedCell:
    """A cell with W x + b + U h + b' as one product with `[x; h]`, for all gates."""

    def __init__(self, recurrence: Any, precision: Precision):
        weight = torch.cat([recurrence.weight_ih_l0, recurrence.weight_hh_l0], dim=1)
        self.linear = PackedLinear(weight, recurrence.bias_ih_l0 + recurrence.bias_hh_l0, precision)


class TanhCell(ConcatenatedCell):
    """h' = tanh(W x + U h + b)."""

    def __call__(self, inputs: torch.Tensor, state: State, product: Product) -> State:
        return (product(self.linear, torch.cat([inputs, state[0]], dim=-1)).tanh_(),)


class LSTMCell(ConcatenatedCell):
    """torch's LSTM."""

    def __call__(self, inputs: torch.Tensor, state: State, product: Product) -> State:
        hidden, cell_state = state
        gates = product(self.linear, torch.cat([inputs, hidden], dim=-1)).chunk(4, dim=-1)  # torch's order
        input_gate, forget_gate, output_gate = gates[0].sigmoid(), gates[1].sigmoid(), gates[3].sigmoid()
        cell_state = torch.addcmul(forget_gate * cell_state, input_gate, gates[2].tanh())
        return output_gate * cell_state.tanh(), cell_state


class GRUCell:
    """torch's GRU, whose reset gate applies to the product with U, which therefore stays apart."""

    def __init__(self, recurrence: Any, precision: Precision):
        self.input_linear = PackedLinear(recurrence.weight_ih_l0, recurrence.bias_ih_l0, precision)
        self.hidden_linear = PackedLinear(recurrence.weight_hh_l0, recurrence.bias_hh_l0, precision)
        self.gates = 2 * recurrence.hidden_size  # width of reset and update gate together

    def __call__(self, inputs: torch.Tensor, state: State, product: Product) -> State:
        (hidden,) = state
        from_inputs, from_hidden = product(self.input_linear, inputs), product(self.hidden_linear, hidden)
        reset, update = (from_inputs[:, : self.gates] + from_hidden[:, : self.gates]).sigmoid_().chunk(2, dim=-1)
        new = torch.addcmul(from_inputs[:, self.gates :], reset, from_hidden[:, self.gates :]).tanh_()
        return (torch.lerp(new, hidden, update),)


CELLS = {"RNN_TANH": TanhCell, "LSTM": LSTMCell, "GRU": GRUCell}


class MultiplicativeScores:
    """The weights of a `MultiplicativeAttention`."""

    def __init__(self, attention: Any, precision: Precision):
        self.keys = PackedLinear(attention.k_proj.weight, None, precision)

    def __call__(self, query: torch.Tensor, keys: torch.Tensor, product: Product) -> torch.Tensor:
        """Score `(sentences, beams, hidden_size)` with `(sentences, source_length, hidden_size)`.

        Returns:
            `(sentences, beams, source_length)`.
        """
        return torch.matmul(query, keys.transpose(1, 2))


class AdditiveScores:
    """The weights of an `AdditiveAttention`; shapes as above."""

    def __init__(self, attention: Any, precision: Precision):
        self.keys = PackedLinear(attention.k_proj.weight, None, precision)
        self.query = PackedLinear(attention.q_proj.weight, None, precision)
        self.v = attention.v.weight.detach()[0]  # (hidden_size)

    def __call__(self, query: torch.Tensor, keys: torch.Tensor, product: Product) -> torch.Tensor:
        query = product(self.query, query)[:, :, None]
        energies = query + keys[:, None]  # (sentences, beams, source_length, hidden_size)
        return torch.matmul(energies.tanh_(), self.v)


SCORES = {AdditiveAttention: AdditiveScores, MultiplicativeAttention: MultiplicativeScores}


class RecurrentDecoderState:
    """See `decoder.DecoderState`."""

    @torch.inference_mode()
    def __init__(
        self,
        decoder: "RecurrentDecoder",
        encoder_outputs: Any,
        mask: torch.Tensor | None,
        max_length: int,
        beams: int,
        output_attentions: bool = False,
    ):
        source = decoder.module.check_source(encoder_outputs)
        if output_attentions and decoder.scores is None:
            raise ValueError(
                "attention='none': the decoder does not look at the source, and a coverage penalty needs one that does "
                "('additive' or 'multiplicative')"
            )
        mask = source.attention_mask if mask is None else mask
        self.decoder, self.sentences = decoder, source.last_hidden_state.shape[0]
        self.product = PackedLinear.gemv if self.sentences * beams == 1 else PackedLinear.forward
        first = decoder.module.first_state(source)
        # With input feeding the readout of the token before, (sentences * beams, embedding_size).
        self.attentional: torch.Tensor | None = first.pop("attentional", None)
        by_layer = [part.transpose(0, 1).contiguous().unbind() for part in first.values()]
        self.state: list[State] = list(zip(*by_layer, strict=True))
        # Keys (sentences, source_length, hidden_size), values (sentences, source_length, encoder_width) and, if there
        # is padding, a mask (sentences, source_length), true for real tokens. Copies: `select` overwrites them.
        self.source: list[torch.Tensor] = []
        if decoder.scores is not None:
            values = source.last_hidden_state.clone(memory_format=torch.contiguous_format)
            self.source = [decoder.scores.keys(values), values]
            if mask is not None and not bool(mask.all()):
                self.source.append(mask != 0)
        self.output_attentions = output_attentions
        self.attention: torch.Tensor | None = None

    @torch.inference_mode()
    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        decoder, context = self.decoder, None
        states = nn.functional.embedding(tokens.flatten(), decoder.embedding)  # (sentences * beams, embedding_size)
        if decoder.input_feeding == "context":  # computed from the state before this token
            context = self._attend(self.state[-1][0])
            states = torch.cat([states, context], dim=-1)
        elif self.attentional is not None:
            states = torch.cat([states, self.attentional], dim=-1)
        for i, (cell, has_residual) in enumerate(zip(decoder.cells, decoder.residuals, strict=True)):
            self.state[i] = cell(states, self.state[i], self.product)
            states = states + self.state[i][0] if has_residual else self.state[i][0]
        if decoder.scores is not None:
            context = self._attend(states) if context is None else context
            states = torch.cat([context, states], dim=-1)
        if decoder.readout is not None:
            states = self.product(decoder.readout, states).tanh_()
        if self.attentional is not None:
            self.attentional = states
        return self.product(decoder.projection, states)

    def _attend(self, query: torch.Tensor) -> torch.Tensor:
        """`(sentences * beams, hidden_size)` → the context `(sentences * beams, encoder_width)`."""
        assert self.decoder.scores is not None
        keys, values, *mask = self.source
        query = query.view(self.sentences, -1, query.shape[-1])
        scores = self.decoder.scores(query, keys, self.product)
        context, weights = attend_with_scores(scores, values, mask[0] if mask else None)
        if self.output_attentions:
            self.attention = weights[:, 0]
        return context.flatten(0, 1)

    @torch.inference_mode()
    def reorder(self, beam_indices: torch.Tensor) -> None:
        beams = self.state[0][0].shape[0] // self.sentences
        first = torch.arange(0, self.sentences * beams, beams, device=beam_indices.device)
        self._select_rows((beam_indices + first[:, None]).flatten())

    @torch.inference_mode()
    def select(self, batch_indices: torch.Tensor) -> None:
        beams = self.state[0][0].shape[0] // self.sentences
        rows = batch_indices[:, None] * beams + torch.arange(beams, device=batch_indices.device)
        self._select_rows(rows.flatten())
        compact_rows(self.source, batch_indices)
        self.sentences = len(batch_indices)
        self.source = [part[: self.sentences] for part in self.source]

    def _select_rows(self, rows: torch.Tensor) -> None:
        """Keep these hypotheses, in this order, by their rows of `(sentences * beams, …)`."""
        self.state = [tuple(part.index_select(0, rows) for part in layer) for layer in self.state]
        if self.attentional is not None:
            self.attentional = self.attentional.index_select(0, rows)


class RecurrentDecoder(TorchDecoder):
    """Decoder and projection of an `RNNSeq2SeqForConditionalGeneration`, laid out for decoding.

    The arguments are as for `build_decoder`; "int8" also quantizes a copy of the encoder.
    """

    state_class = RecurrentDecoderState

    @torch.no_grad()
    def __init__(self, model: Any, precision: Precision):
        super().__init__(quantized_linears(model.get_encoder()) if precision == "int8" else model.get_encoder())
        self.module = decoder = model.model.decoder  # for the bridge, once a sentence
        self.input_feeding = model.config.input_feeding
        self.embedding = decoder.embed_tokens.weight.detach()
        self.cells = [CELLS[layer.recurrence.mode](layer.recurrence, precision) for layer in decoder.stack.layers]
        self.residuals = [layer.has_residual for layer in decoder.stack.layers]
        attention = decoder.attention
        self.scores = None if attention is None else SCORES[type(attention)](attention, precision)
        readout = decoder.readout
        self.readout = None if readout.is_state else PackedLinear(readout.linear.weight, readout.linear.bias, precision)
        self.projection = PackedLinear(model.lm_head.weight, model.lm_head.bias, precision)
