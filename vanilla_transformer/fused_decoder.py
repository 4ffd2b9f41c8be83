# SPDX-License-Identifier: Apache-2.0
"""The Transformer's decoder, one token at a time: the same function as the module, laid out for speed.

The trained module keeps its clear form; `build_decoder` makes this from it. One product computes queries, keys and
values. The source's keys and values are computed once for a sentence, whose beams are rows of one query. The cache is
written once and never reordered: a mask says which entries belong to a hypothesis' own past.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from .decoder import TorchDecoder, compact_rows
from .packed_linear import PackedLinear, Precision, fused_projections, quantized_linears

CACHE_BLOCK = 32  # tokens by which the cache of each beam grows


class FusedAttention:
    """The weights of one attention, with 1 / sqrt(d_k) folded into the query's."""

    def __init__(self, attention: Any, precision: Precision, is_cross: bool):
        self.d_k, self.d_v = attention.d_k, attention.d_v
        self.heads = attention.q_proj.out_features // self.d_k

        def packed(*names: str) -> PackedLinear:
            return PackedLinear(*fused_projections(attention, names), precision)

        if is_cross:
            self.query, self.source = packed("q_proj"), packed("k_proj", "v_proj")
        else:
            self.query_key_value = packed("q_proj", "k_proj", "v_proj")
        self.output = PackedLinear(attention.out_proj.weight, attention.out_proj.bias, precision)

    def split(self, projected: torch.Tensor, sentences: int, *widths: int) -> Sequence[torch.Tensor]:
        """`(sentences * n, heads * sum of widths)` → for each of the widths `(sentences, heads, n, width)`."""
        if len(set(widths)) == 1:  # as in nearly all models: fewer views, which a CPU feels
            whole = projected.view(sentences, -1, self.heads * len(widths), widths[0]).transpose(1, 2)
            return whole.split(self.heads, dim=1)
        parts = projected.view(sentences, -1, projected.shape[-1]).split([self.heads * w for w in widths], dim=-1)
        return [part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts]

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Attention of `query` `(sentences, heads, beams, d_k)`, with `mask` added to the scores.

        Returns:
            The input of `output`, `(sentences * beams, heads * d_v)`, and the weights
            `(sentences, heads, beams, key_length)`.
        """
        scores = torch.matmul(query, key.transpose(2, 3))  # (sentences, heads, beams, key_length)
        if mask is not None:
            scores.add_(mask)
        weights = scores.softmax(dim=-1)
        mixed = torch.matmul(weights, value).transpose(1, 2)  # (sentences, beams, heads, d_v)
        return mixed.reshape(-1, self.heads * self.d_v), weights


class FusedLayer:
    """The weights of one decoder layer."""

    def __init__(self, layer: Any, precision: Precision):
        self.self_attention = FusedAttention(layer.self_attention, precision, is_cross=False)
        self.cross_attention = FusedAttention(layer.cross_attention, precision, is_cross=True)
        network = layer.feed_forward
        is_relu = isinstance(network.activation, nn.ReLU)  # which oneDNN and FBGEMM apply as they write
        self.activation = None if is_relu else network.activation
        self.linear_1 = PackedLinear(network.linear_1.weight, network.linear_1.bias, precision, relu=is_relu)
        self.linear_2 = PackedLinear(network.linear_2.weight, network.linear_2.bias, precision)
        norms = (layer.self_attention_norm, layer.cross_attention_norm, layer.feed_forward_norm)
        self.norms = [FusedLayerNorm(norm) for norm in norms]
        self.is_pre_norm = layer.self_attention_norm.is_pre_norm

    def step(self, states: torch.Tensor, decoding: "FusedDecoderState", number: int) -> torch.Tensor:
        """`(sentences * beams, d_model)` → `(sentences * beams, d_model)`, for one token of each hypothesis."""
        sublayers = (decoding.self_attention, decoding.cross_attention, decoding.feed_forward)
        for norm, sublayer in zip(self.norms, sublayers, strict=True):
            if self.is_pre_norm:
                states = states + sublayer(norm(states), self, number)
            else:
                states = norm(states + sublayer(states, self, number))
        return states


class FusedLayerNorm:
    """A LayerNorm without a module's overhead."""

    def __init__(self, norm: nn.LayerNorm):
        self.arguments = (norm.normalized_shape, norm.weight.detach(), norm.bias.detach(), norm.eps)

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        return nn.functional.layer_norm(states, *self.arguments)


def additive_mask(mask: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None:
    """The term added to scores, finite as in the eager backend: a source may be all padding. `None`: nothing hidden.

    Args:
        mask: `(sentences, source_length)`, 1 for real tokens.

    Returns:
        `(sentences, source_length)`.
    """
    if mask is None or bool(mask.all()):
        return None
    added = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
    return added.masked_fill_(mask == 0, torch.finfo(dtype).min)


class FusedDecoderState:
    """See `decoder.DecoderState`."""

    @torch.inference_mode()
    def __init__(
        self,
        decoder: "FusedDecoder",
        encoder_outputs: Any,
        mask: torch.Tensor | None,
        max_length: int,
        beams: int,
        output_attentions: bool = False,
    ):
        source = encoder_outputs.last_hidden_state
        self.decoder, self.sentences = decoder, source.shape[0]
        self.product = PackedLinear.gemv if self.sentences * beams == 1 else PackedLinear.forward
        ids = torch.arange(max_length, device=source.device)
        self.positions = decoder.positions(ids, max_length).to(source.dtype)  # (max_length, d_model)
        added = additive_mask(mask, source.dtype)
        self.source_mask = None if added is None else added[:, None, None]  # (sentences, 1, 1, source_length)
        # Keys and values of each layer: the source's, (sentences, heads, source_length, d_k) and d_v; and the target's,
        # (sentences, heads, capacity, d_k) and d_v, with an entry for each token of each beam.
        self.source: list[list[torch.Tensor]] = []
        for layer in decoder.layers:
            cross = layer.cross_attention
            parts = cross.split(cross.source(source.flatten(0, 1)), self.sentences, cross.d_k, cross.d_v)
            self.source.append([part.contiguous() for part in parts])
        self.cache: list[list[torch.Tensor]] = []
        self.entries = self.length = 0  # entries in the cache; tokens of a hypothesis
        # Added to scores: 0 for a hypothesis' own past, else -inf; (sentences, beams, entries). `None`: one beam.
        self.ancestor_mask: torch.Tensor | None = None
        self.output_attentions = output_attentions
        self.attention: torch.Tensor | None = None  # last layer, mean of its heads

    @torch.inference_mode()
    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        decoder = self.decoder
        self._grow(tokens.shape[1])
        embedded = nn.functional.embedding(tokens.flatten(), decoder.embedding)  # (sentences * beams, d_model)
        states = decoder.embedding_norm(torch.add(self.positions[self.length], embedded, alpha=decoder.scale))
        for number, layer in enumerate(decoder.layers):
            states = layer.step(states, self, number)
        self.entries += tokens.shape[1]
        self.length += 1
        return self.product(decoder.projection, decoder.norm(states))

    def self_attention(self, states: torch.Tensor, layer: FusedLayer, number: int) -> torch.Tensor:
        attention, (keys, values) = layer.self_attention, self.cache[number]
        projected = self.product(attention.query_key_value, states)
        query, key, value = attention.split(projected, self.sentences, attention.d_k, attention.d_k, attention.d_v)
        end = self.entries + key.shape[2]
        keys.narrow(2, self.entries, key.shape[2]).copy_(key)
        values.narrow(2, self.entries, key.shape[2]).copy_(value)
        mask = None if self.ancestor_mask is None else self.ancestor_mask[:, None]
        attended, _ = attention.attend(query, keys.narrow(2, 0, end), values.narrow(2, 0, end), mask)
        return self.product(attention.output, attended)

    def cross_attention(self, states: torch.Tensor, layer: FusedLayer, number: int) -> torch.Tensor:
        attention, (keys, values) = layer.cross_attention, self.source[number]
        (query,) = attention.split(self.product(attention.query, states), self.sentences, attention.d_k)
        attended, weights = attention.attend(query, keys, values, self.source_mask)
        if self.output_attentions and number == len(self.source) - 1:
            self.attention = weights.mean(dim=1)
        return self.product(attention.output, attended)

    def feed_forward(self, states: torch.Tensor, layer: FusedLayer, number: int) -> torch.Tensor:
        hidden = self.product(layer.linear_1, states)  # (sentences * beams, d_ff)
        return self.product(layer.linear_2, hidden if layer.activation is None else layer.activation(hidden))

    def _grow(self, beams: int) -> None:
        """Make room for one more token of each hypothesis, which no other hypothesis attends to."""
        end = self.entries + beams
        if not self.cache or end > self.cache[0][0].shape[2]:
            capacity = end + CACHE_BLOCK * beams
            grown = [
                [part.new_empty(*part.shape[:2], capacity, part.shape[3]) for part in layer] for layer in self.source
            ]
            for new_layer, old_layer in zip(grown, self.cache, strict=False):  # no old ones, the first time
                for new, old in zip(new_layer, old_layer, strict=True):
                    new[:, :, : self.entries] = old[:, :, : self.entries]
            self.cache = grown
        if self.ancestor_mask is None and beams > 1:
            self.ancestor_mask = self.positions.new_zeros(self.sentences, beams, self.entries)
        if self.ancestor_mask is not None:
            own = torch.full(
                (beams, beams), -torch.inf, dtype=self.ancestor_mask.dtype, device=self.ancestor_mask.device
            )
            own.fill_diagonal_(0.0)
            self.ancestor_mask = torch.cat([self.ancestor_mask, own.expand(self.sentences, -1, -1)], dim=2)

    @torch.inference_mode()
    def reorder(self, beam_indices: torch.Tensor) -> None:
        if self.ancestor_mask is not None:
            index = beam_indices[..., None].expand(-1, -1, self.entries)
            self.ancestor_mask = self.ancestor_mask.gather(1, index)  # (sentences, beams, entries)

    @torch.inference_mode()
    def select(self, batch_indices: torch.Tensor) -> None:
        used = [part[:, :, : self.entries] for layer in self.cache for part in layer]
        compact_rows([*used, *(part for layer in self.source for part in layer)], batch_indices)
        self.sentences = len(batch_indices)
        self.cache, self.source = (
            [[part[: self.sentences] for part in layer] for layer in layers] for layers in (self.cache, self.source)
        )
        if self.ancestor_mask is not None:
            self.ancestor_mask = self.ancestor_mask[batch_indices]
        if self.source_mask is not None:
            self.source_mask = self.source_mask[batch_indices]


class FusedDecoder(TorchDecoder):
    """Decoder and projection of a `VanillaTransformerForConditionalGeneration`, laid out for decoding.

    The arguments are as for `build_decoder`; "int8" also quantizes a copy of the encoder.
    """

    state_class = FusedDecoderState

    @torch.no_grad()
    def __init__(self, model: Any, precision: Precision):
        super().__init__(quantized_linears(model.get_encoder()) if precision == "int8" else model.get_encoder())
        decoder = model.model.decoder
        self.layers = [FusedLayer(layer, precision) for layer in decoder.layers]
        self.embedding = decoder.embed_tokens.weight.detach()
        self.scale, self.positions = decoder.input_embedding.scale, decoder.input_embedding.positions
        self.embedding_norm, self.norm = (
            FusedLayerNorm(norm) if isinstance(norm, nn.LayerNorm) else norm  # which is an Identity
            for norm in (decoder.input_embedding.norm, decoder.norm)
        )
        self.projection = PackedLinear(model.lm_head.weight, model.lm_head.bias, precision)
