# SPDX-License-Identifier: Apache-2.0
"""The RNN's decoder, one token at a time: the same function as the module, laid out for speed.

The trained module keeps its clear form; this is made from it when a model is prepared for decoding. What is saved: the
calls and the transposed states of torch's recurrent layers, which are made for sequences; a product for each half of a
cell that can do with one; keys of the source once for a sentence, whose beams stand in the length of the query.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .attention import AdditiveAttention, MultiplicativeAttention, attend_with_scores
from .packed_linear import PackedLinear, Precision

Product = Callable[[PackedLinear, torch.Tensor], torch.Tensor]  # `PackedLinear.forward` or `PackedLinear.gemv`


class TanhCell:
    """h' = tanh(W x + U h + b), W and U side by side; `state` is `(h,)`, of `(sentences * beams, hidden_size)`."""

    def __init__(self, recurrence: Any, precision: Precision):
        self.linear = _side_by_side(recurrence, precision)

    def __call__(
        self, inputs: torch.Tensor, state: tuple[torch.Tensor, ...], product: Product
    ) -> tuple[torch.Tensor, ...]:
        return (product(self.linear, torch.cat([inputs, state[0]], dim=-1)).tanh_(),)


class LSTMCell:
    """Likewise, for all gates at once; `state` is `(h, c)`."""

    def __init__(self, recurrence: Any, precision: Precision):
        self.linear = _side_by_side(recurrence, precision)

    def __call__(
        self, inputs: torch.Tensor, state: tuple[torch.Tensor, ...], product: Product
    ) -> tuple[torch.Tensor, ...]:
        hidden, memory = state
        gates = product(self.linear, torch.cat([inputs, hidden], dim=-1)).chunk(4, dim=-1)  # torch's order
        enter, forget, out = gates[0].sigmoid(), gates[1].sigmoid(), gates[3].sigmoid()
        memory = torch.addcmul(forget * memory, enter, gates[2].tanh())
        return out * memory.tanh(), memory


class GRUCell:
    """In torch's form, whose reset gate is applied after the product with U: it needs that product by itself."""

    def __init__(self, recurrence: Any, precision: Precision):
        self.of_inputs = PackedLinear(recurrence.weight_ih_l0, recurrence.bias_ih_l0, precision)
        self.of_hidden = PackedLinear(recurrence.weight_hh_l0, recurrence.bias_hh_l0, precision)
        self.gates = 2 * recurrence.hidden_size  # width of reset and update gate together

    def __call__(
        self, inputs: torch.Tensor, state: tuple[torch.Tensor, ...], product: Product
    ) -> tuple[torch.Tensor, ...]:
        (hidden,) = state
        of_inputs, of_hidden = product(self.of_inputs, inputs), product(self.of_hidden, hidden)
        reset, update = (of_inputs[:, : self.gates] + of_hidden[:, : self.gates]).sigmoid_().chunk(2, dim=-1)
        new = torch.addcmul(of_inputs[:, self.gates :], reset, of_hidden[:, self.gates :]).tanh_()
        return (torch.lerp(new, hidden, update),)


CELLS = {"RNN_TANH": TanhCell, "LSTM": LSTMCell, "GRU": GRUCell}


def _side_by_side(recurrence: Any, precision: Precision) -> PackedLinear:
    """W x + b + U h + b' as one product with `[x; h]`."""
    weight = torch.cat([recurrence.weight_ih_l0, recurrence.weight_hh_l0], dim=1)
    return PackedLinear(weight, recurrence.bias_ih_l0 + recurrence.bias_hh_l0, precision)


class MultiplicativeScores:
    """The weights of a `MultiplicativeAttention`."""

    def __init__(self, attention: Any, precision: Precision):
        self.keys = PackedLinear(attention.k_proj.weight, None, precision)

    def __call__(self, query: torch.Tensor, keys: torch.Tensor, product: Product) -> torch.Tensor:
        """Of `(sentences, beams, hidden_size)` with `(sentences, source_length, hidden_size)`.

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


class RecurrentDecoder:
    """Decoder and projection of an `RNNSeq2SeqForConditionalGeneration`, ready for decoding.

    Args:
        model: with plain modules; later changes of its weights are not followed.
        precision: "int8" quantizes the weights; otherwise they are as precise as the model's own.
    """

    @torch.no_grad()
    def __init__(self, model: Any, precision: Precision):
        self.module = decoder = model.model.decoder  # for what is done once a sentence: the bridge
        self.input_feeding = model.config.input_feeding
        self.embedding = decoder.embed_tokens.weight.detach()
        self.cells = [CELLS[layer.recurrence.mode](layer.recurrence, precision) for layer in decoder.stack.layers]
        self.residuals = [layer.has_residual for layer in decoder.stack.layers]
        attention = decoder.attention
        self.scores = None if attention is None else SCORES[type(attention)](attention, precision)
        readout = decoder.readout
        self.readout = None if readout.is_state else PackedLinear(readout.linear.weight, None, precision)
        self.projection = PackedLinear(model.lm_head.weight, model.lm_head.bias, precision)

    def begin(
        self,
        encoder_outputs: Any,
        attention_mask: torch.Tensor | None,
        max_length: int,
        beams: int,
        output_attentions: bool = False,
    ) -> "RecurrentDecoderState":
        """Start decoding these sources, with one hypothesis for each that has no token yet.

        Args:
            encoder_outputs: an `RNNSeq2SeqEncoderOutput` of `sentences` rows.
            attention_mask: `(sentences, source_length)`, 1 for real tokens; `None`: that of `encoder_outputs`.
            max_length: of all targets, in tokens; a state is of one size whatever it is.
            beams: hypotheses that there will be of each sentence.
            output_attentions: the steps have an `attention`.

        Raises:
            ValueError: encoder outputs of another kind; attention to be kept of a decoder without.
        """
        self.module.check_source(encoder_outputs)
        if output_attentions and self.scores is None:
            raise ValueError(
                "attention='none': the decoder does not look at the source, and a coverage penalty needs one that does "
                "('additive' or 'multiplicative')"
            )
        mask = encoder_outputs.attention_mask if attention_mask is None else attention_mask
        return RecurrentDecoderState(self, encoder_outputs, mask, beams, output_attentions)


class RecurrentDecoderState:
    """Sentences in the midst of being decoded, with any number of hypotheses (`beams`) for each."""

    @torch.inference_mode()
    def __init__(
        self, decoder: RecurrentDecoder, source: Any, mask: torch.Tensor | None, beams: int, output_attentions: bool
    ):
        self.decoder, self.sentences = decoder, source.last_hidden_state.shape[0]
        self.product = PackedLinear.gemv if self.sentences * beams == 1 else PackedLinear.forward
        first = decoder.module.first_state(source.final_hidden, source.final_cell_state)
        parts = [
            first[name].transpose(0, 1).contiguous().unbind() for name in ("hidden", "cell_state") if name in first
        ]
        # Of each layer, what its cell keeps, (sentences * beams, hidden_size).
        self.state: list[tuple[torch.Tensor, ...]] = list(zip(*parts, strict=True))
        self.attentional = first.get("attentional")  # vector of the token before, (sentences * beams, embedding_size)
        # Of each sentence: keys (source_length, hidden_size), values (source_length, encoder_width) and perhaps a mask,
        # true for real tokens, (source_length). Copies, for they are overwritten when sentences leave.
        self.source: list[torch.Tensor] = []
        if decoder.scores is not None:
            values = source.last_hidden_state.clone(memory_format=torch.contiguous_format)
            self.source = [decoder.scores.keys(values), values]
            if mask is not None and not bool(mask.all()):
                self.source.append(mask != 0)
        self.output_attentions = output_attentions
        self.attention: torch.Tensor | None = None  # (sentences, beams, source_length)

    @torch.inference_mode()
    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        """Read a token of each hypothesis: `(sentences, beams)` → logits `(sentences * beams, vocab_size)`."""
        decoder, context = self.decoder, None
        states = nn.functional.embedding(tokens.flatten(), decoder.embedding)  # (sentences * beams, embedding_size)
        if decoder.input_feeding == "context":  # of the state before, read with the token
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
        """Hypothesis i of a sentence continues its former hypothesis `beam_indices[:, i]`.

        `beam_indices` `(sentences, beams)`; there may be more or fewer than before.
        """
        beams = self.state[0][0].shape[0] // self.sentences
        first = torch.arange(0, self.sentences * beams, beams, device=beam_indices.device)
        self._select((beam_indices + first[:, None]).flatten())

    @torch.inference_mode()
    def select(self, batch_indices: torch.Tensor) -> None:
        """Go on with these sentences in this order, `(sentences)`; what stays in its place is not copied."""
        count = len(batch_indices)
        beams = self.state[0][0].shape[0] // self.sentences
        self._select((batch_indices[:, None] * beams + torch.arange(beams, device=batch_indices.device)).flatten())
        to = (
            (batch_indices != torch.arange(count, device=batch_indices.device)).nonzero().squeeze(1)
        )  # places that another takes
        there = batch_indices[to]
        for i, part in enumerate(self.source):
            part[to] = part[there]
            self.source[i] = part[:count]
        self.sentences = count

    def _select(self, hypotheses: torch.Tensor) -> None:
        """Go on with these, by their places among those of all sentences."""
        self.state = [tuple(part.index_select(0, hypotheses) for part in layer) for layer in self.state]
        if self.attentional is not None:
            self.attentional = self.attentional.index_select(0, hypotheses)
