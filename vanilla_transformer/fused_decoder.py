# SPDX-License-Identifier: Apache-2.0
"""The Transformer's decoder, one token at a time: the same function as the module, laid out for speed.

The trained module keeps its clear form; this is made from it when a model is prepared for decoding. What is saved:
one product for queries, keys and values; keys and values of the source once for a sentence, whose beams stand in the
length of the query; a cache that is written once and never reordered, for a mask says whose ancestor an entry is.
"""

from typing import Any

import torch
from torch import nn

from .packed_linear import PackedLinear, Precision

BLOCK = 32  # entries of each beam by which a cache grows


class FusedAttention:
    """The weights of one attention, with 1 / sqrt(d_k) inside those of the queries."""

    def __init__(self, attention: Any, precision: Precision, is_cross: bool):
        self.d_k, self.d_v = attention.d_k, attention.d_v
        self.heads = attention.q_proj.out_features // self.d_k
        query, key, value = (
            (one.weight * factor, None if one.bias is None else one.bias * factor)
            for one, factor in ((attention.q_proj, attention.scaling), (attention.k_proj, 1.0), (attention.v_proj, 1.0))
        )
        if is_cross:
            self.query, self.source = _packed([query], precision), _packed([key, value], precision)
        else:
            self.query_key_value = _packed([query, key, value], precision)
        self.output = PackedLinear(attention.out_proj.weight, attention.out_proj.bias, precision)

    def split(self, projected: torch.Tensor, sentences: int, *widths: int) -> tuple[torch.Tensor, ...]:
        """`(sentences * n, heads * sum of widths)` → for each of the widths `(sentences, heads, n, width)`."""
        if len(set(widths)) == 1:  # as in nearly all models: fewer views, which a CPU feels
            whole = projected.view(sentences, -1, self.heads * len(widths), widths[0]).transpose(1, 2)
            return whole.split(self.heads, dim=1)
        parts = projected.view(sentences, -1, projected.shape[-1]).split([self.heads * one for one in widths], dim=-1)
        return tuple(
            part.unflatten(-1, (self.heads, width)).transpose(1, 2) for part, width in zip(parts, widths, strict=True)
        )

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`query` `(sentences, heads, beams, d_k)`, `mask` added to the scores.

        Returns:
            What `output` reads, `(sentences * beams, heads * d_v)`, and the weights
            `(sentences, heads, beams, key_length)`.
        """
        scores = torch.matmul(query, key.transpose(2, 3))  # (sentences, heads, beams, key_length)
        if mask is not None:
            scores.add_(mask)
        weights = scores.softmax(dim=-1)
        mixed = torch.matmul(weights, value).transpose(1, 2)  # (sentences, beams, heads, d_v)
        return mixed.reshape(-1, self.heads * self.d_v), weights


def _packed(parts: list[tuple[torch.Tensor, torch.Tensor | None]], precision: Precision) -> PackedLinear:
    """Several projections of one input as one."""
    weights = torch.cat([weight for weight, _ in parts])
    biases = [bias for _, bias in parts if bias is not None]
    return PackedLinear(weights, torch.cat(biases) if biases else None, precision)


class FusedLayer:
    """The weights of one decoder layer."""

    def __init__(self, layer: Any, precision: Precision):
        self.self_attention = FusedAttention(layer.self_attention, precision, is_cross=False)
        self.cross_attention = FusedAttention(layer.cross_attention, precision, is_cross=True)
        network = layer.feed_forward
        self.activation = None if isinstance(network.activation, nn.ReLU) else network.activation
        is_relu = self.activation is None  # which oneDNN and FBGEMM apply as they write
        self.linear_1 = PackedLinear(network.linear_1.weight, network.linear_1.bias, precision, relu=is_relu)
        self.linear_2 = PackedLinear(network.linear_2.weight, network.linear_2.bias, precision)
        norms = (layer.self_attention_norm, layer.cross_attention_norm, layer.feed_forward_norm)
        self.norms = [LayerNorm(norm) for norm in norms]
        self.is_pre_norm = layer.self_attention_norm.is_pre_norm

    def step(self, states: torch.Tensor, position: "FusedDecoderState", number: int) -> torch.Tensor:
        """`(sentences * beams, d_model)` → `(sentences * beams, d_model)`, for one token of each hypothesis."""
        sublayers = (position.self_attention, position.cross_attention, position.feed_forward)
        for norm, sublayer in zip(self.norms, sublayers, strict=True):
            if self.is_pre_norm:
                states = states + sublayer(norm(states), self, number)
            else:
                states = norm(states + sublayer(states, self, number))
        return states


class LayerNorm:
    """A LayerNorm's weights without what a module does besides."""

    def __init__(self, norm: nn.LayerNorm):
        self.arguments = (norm.normalized_shape, norm.weight.detach(), norm.bias.detach(), norm.eps)

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        return nn.functional.layer_norm(states, *self.arguments)


class FusedDecoder:
    """Decoder and projection of a `VanillaTransformerForConditionalGeneration`, ready for decoding.

    Args:
        model: with plain modules; later changes of its weights have no effect here.
        precision: "int8" quantizes the weights; otherwise they are as precise as the model's own.
    """

    @torch.no_grad()
    def __init__(self, model: Any, precision: Precision):
        decoder = model.model.decoder
        self.layers = [FusedLayer(layer, precision) for layer in decoder.layers]
        self.embedding = decoder.embed_tokens.weight.detach()
        self.scale, self.positions = decoder.input_embedding.scale, decoder.input_embedding.positions
        self.norm = LayerNorm(decoder.norm) if isinstance(decoder.norm, nn.LayerNorm) else decoder.norm
        self.projection = PackedLinear(model.lm_head.weight, model.lm_head.bias, precision)

    def begin(
        self,
        encoder_outputs: Any,
        attention_mask: torch.Tensor | None,
        max_length: int,
        beams: int,
        output_attentions: bool = False,
    ) -> "FusedDecoderState":
        """Start decoding these sources, with one hypothesis for each that has no token yet.

        Args:
            encoder_outputs: with `last_hidden_state` `(sentences, source_length, d_model)`.
            attention_mask: `(sentences, source_length)`, 1 for real tokens; `None`: all are real.
            max_length: of all targets, in tokens.
            beams: hypotheses that there will be of each sentence.
            output_attentions: the steps have an `attention`.

        Raises:
            ValueError: targets beyond learned positions.
        """
        return FusedDecoderState(
            self, encoder_outputs.last_hidden_state, attention_mask, max_length, beams, output_attentions
        )


class FusedDecoderState:
    """Sentences in the midst of being decoded, with any number of hypotheses (`beams`) for each."""

    @torch.inference_mode()
    def __init__(
        self,
        decoder: FusedDecoder,
        source: torch.Tensor,
        mask: torch.Tensor | None,
        max_length: int,
        beams: int,
        output_attentions: bool,
    ):
        self.decoder, self.sentences = decoder, source.shape[0]
        self.product = PackedLinear.gemv if self.sentences * beams == 1 else PackedLinear.forward
        ids = torch.arange(max_length, device=source.device)
        self.positions = decoder.positions(ids, max_length).to(source.dtype)  # (max_length, d_model)
        self.source_mask = None  # added to scores, (sentences, 1, 1, source_length)
        if mask is not None and not bool(mask.all()):
            never = torch.finfo(source.dtype).min  # finite, as the eager backend has it: a source may be only padding
            self.source_mask = source.new_zeros(mask.shape).masked_fill_(mask == 0, never)[:, None, None]
        self.source = []  # of each layer keys and values, (sentences, heads, source_length, d_k) and d_v
        for layer in decoder.layers:
            one = layer.cross_attention
            parts = one.split(one.source(source.flatten(0, 1)), self.sentences, one.d_k, one.d_v)
            self.source.append([part.contiguous() for part in parts])
        self.cache: list[list[torch.Tensor]] = []  # likewise of the target, (sentences, heads, capacity, d_k) and d_v
        self.entries = self.length = 0  # in the cache, those of all beams; tokens of a hypothesis
        # Added to scores: 0 for a hypothesis' own entries, else -inf; (sentences, beams, entries). `None`: all are own.
        self.ancestors: torch.Tensor | None = None
        self.output_attentions = output_attentions
        self.attention: torch.Tensor | None = None  # last layer, mean of its heads, (sentences, beams, source_length)

    @torch.inference_mode()
    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        """Read a token of each hypothesis: `(sentences, beams)` → logits `(sentences * beams, vocab_size)`."""
        decoder = self.decoder
        self._make_room(tokens.shape[1])
        embedded = nn.functional.embedding(tokens.flatten(), decoder.embedding)  # (sentences * beams, d_model)
        states = torch.add(self.positions[self.length], embedded, alpha=decoder.scale)
        for number, layer in enumerate(decoder.layers):
            states = layer.step(states, self, number)
        self.entries += tokens.shape[1]
        self.length += 1
        return self.product(decoder.projection, decoder.norm(states))

    def self_attention(self, states: torch.Tensor, layer: FusedLayer, number: int) -> torch.Tensor:
        one, (keys, values) = layer.self_attention, self.cache[number]
        projected = self.product(one.query_key_value, states)
        query, key, value = one.split(projected, self.sentences, one.d_k, one.d_k, one.d_v)
        end = self.entries + key.shape[2]
        keys.narrow(2, self.entries, key.shape[2]).copy_(key)
        values.narrow(2, self.entries, key.shape[2]).copy_(value)
        mask = None if self.ancestors is None else self.ancestors[:, None]
        attended, _ = one.attend(query, keys.narrow(2, 0, end), values.narrow(2, 0, end), mask)
        return self.product(one.output, attended)

    def cross_attention(self, states: torch.Tensor, layer: FusedLayer, number: int) -> torch.Tensor:
        one, (keys, values) = layer.cross_attention, self.source[number]
        (query,) = one.split(self.product(one.query, states), self.sentences, one.d_k)
        attended, weights = one.attend(query, keys, values, self.source_mask)
        if self.output_attentions and number == len(self.source) - 1:
            self.attention = weights.mean(dim=1)
        return self.product(one.output, attended)

    def feed_forward(self, states: torch.Tensor, layer: FusedLayer, number: int) -> torch.Tensor:
        hidden = self.product(layer.linear_1, states)  # (sentences * beams, d_ff)
        return self.product(layer.linear_2, hidden if layer.activation is None else layer.activation(hidden))

    def _make_room(self, beams: int) -> None:
        """For one more token of each hypothesis, which is an ancestor of none but itself."""
        end = self.entries + beams
        if not self.cache or end > self.cache[0][0].shape[2]:
            capacity = end + BLOCK * beams
            grown = [
                [part.new_empty(*part.shape[:2], capacity, part.shape[3]) for part in source] for source in self.source
            ]
            for new, old in zip(grown, self.cache, strict=False):  # none, the first time
                for one, part in zip(new, old, strict=True):
                    one[:, :, : self.entries] = part[:, :, : self.entries]
            self.cache = grown
        if self.ancestors is None and beams > 1:
            self.ancestors = self.positions.new_zeros(self.sentences, beams, self.entries)
        if self.ancestors is not None:
            own = torch.full((beams, beams), -torch.inf, dtype=self.ancestors.dtype, device=self.ancestors.device)
            own.fill_diagonal_(0.0)
            self.ancestors = torch.cat([self.ancestors, own.expand(self.sentences, -1, -1)], dim=2)

    @torch.inference_mode()
    def reorder(self, beam_indices: torch.Tensor) -> None:
        """Hypothesis i of a sentence continues its former hypothesis `beam_indices[:, i]`.

        `beam_indices` `(sentences, beams)`; there may be more or fewer than before.
        """
        if self.ancestors is not None:
            index = beam_indices[..., None].expand(-1, -1, self.entries)
            self.ancestors = self.ancestors.gather(1, index)  # (sentences, beams, entries)

    @torch.inference_mode()
    def select(self, batch_indices: torch.Tensor) -> None:
        """Go on with these sentences in this order, `(sentences)`; what stays in its place is not copied."""
        count = len(batch_indices)
        to = (
            (batch_indices != torch.arange(count, device=batch_indices.device)).nonzero().squeeze(1)
        )  # places that another takes
        there = batch_indices[to]
        for layer, source in zip(self.cache, self.source, strict=True):
            for i, (own, of_source) in enumerate(zip(layer, source, strict=True)):
                own[to, :, : self.entries] = own[there, :, : self.entries]
                of_source[to] = of_source[there]
                layer[i], source[i] = own[:count], of_source[:count]
        if self.ancestors is not None:
            self.ancestors = self.ancestors[batch_indices]
        if self.source_mask is not None:
            self.source_mask = self.source_mask[batch_indices]
        self.sentences = count
