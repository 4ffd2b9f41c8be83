# SPDX-License-Identifier: Apache-2.0
"""Section 3.2 of the paper: scaled dot-product and multi-head attention; and the attention of the RNNs before it."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache, EncoderDecoderCache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .linear import Linear, joint_linear
from .tiled_attention import is_faster_in_tiles, tiled_attention


def scaled_dot_product_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Equation 1: softmax(Q K^T / sqrt(d_k)) V; the "eager" attention backend, which returns the weights.

    Args:
        module: the attention module, whose `training` switches the dropout.
        query: `(batch, num_heads, query_length, d_k)`.
        key: `(batch, num_heads, key_length, d_k)`.
        value: `(batch, num_heads, key_length, d_v)`.
        attention_mask: added to the scores, `(batch, 1, query_length, key_length)`. A departure: it has the most
            negative finite number where the paper has -infinity, so that a row without any permitted key stays finite.
        scaling: 1 / sqrt(d_k).
        dropout: rate on the weights; 0 in the paper.

    Returns:
        The output `(batch, query_length, num_heads, d_v)`, and the weights
        `(batch, num_heads, query_length, key_length)`.
    """
    scores = torch.matmul(query, key.transpose(2, 3)) * scaling  # (batch, num_heads, query_length, key_length)
    if attention_mask is not None:
        scores = scores + attention_mask
    # In float32, which is more exact, and on a CPU three times as fast for rows as short as sentences.
    weights = scores.softmax(dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    output = torch.matmul(weights, value)  # (batch, num_heads, query_length, d_v)
    return output.transpose(1, 2).contiguous(), weights


class MultiHeadAttention(nn.Module):
    """Section 3.2.2: Concat(head_1, …, head_h) W^O with head_i = Attention(Q W^Q_i, K W^K_i, V W^V_i).

    Each of `q_proj`, `k_proj` and `v_proj` holds the projections of all heads. `d_k` and `d_v` may differ from
    d_model / num_heads (Table 3, row B). The class serves the three uses of section 3.2.3: encoder
    self-attention, masked decoder self-attention (`is_causal`), and attention over the encoder's output
    (`encoder_hidden_states` given).
    """

    def __init__(self, config, is_causal: bool = False, layer_idx: int | None = None):
        super().__init__()
        self.config = config
        self.is_causal = is_causal
        self.layer_idx = layer_idx
        self.d_k = config.d_k
        self.d_v = config.d_v
        self.scaling = config.d_k**-0.5
        self.attention_dropout = config.attention_dropout
        bias = config.attention_bias
        self.q_proj = Linear(config.d_model, config.num_heads * config.d_k, bias=bias)
        self.k_proj = Linear(config.d_model, config.num_heads * config.d_k, bias=bias)
        self.v_proj = Linear(config.d_model, config.num_heads * config.d_v, bias=bias)
        self.out_proj = Linear(config.num_heads * config.d_v, config.d_model, bias=bias)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        cache: Cache | None = None,
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """`hidden_states` `(batch, query_length, d_model)`, `encoder_hidden_states` `(batch, source_length, d_model)`.

        Returns:
            `(batch, query_length, d_model)`, and the weights `(batch, num_heads, query_length, key_length)`, `None`
            where the attention backend returns none.
        """
        batch, query_length, _ = hidden_states.shape
        if encoder_hidden_states is None:
            query, key, value = joint_linear(hidden_states, (self.q_proj, self.k_proj, self.v_proj))
            key, value = self._extend(cache, key, value)
        else:
            query = self.q_proj(hidden_states)
            key, value = self._project_source(encoder_hidden_states, cache)
        query = self._split_heads(query, self.d_k)  # (batch, num_heads, query_length, d_k)

        attention: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, scaled_dot_product_attention
        )
        dropout = self.attention_dropout if self.training else 0.0
        is_sdpa = self.config._attn_implementation == "sdpa"
        if is_sdpa and is_faster_in_tiles(query, key, attention_mask, dropout, self.is_causal):
            attention = tiled_attention
        output, weights = attention(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=dropout,
            scaling=self.scaling,
            **kwargs,
        )  # (batch, query_length, num_heads, d_v)
        output = output.reshape(batch, query_length, -1).contiguous()  # (batch, query_length, num_heads * d_v)
        return self.out_proj(output), weights

    def _project_source(self, source: torch.Tensor, cache: Cache | None) -> tuple[torch.Tensor, torch.Tensor]:
        """`(batch, num_heads, source_length, d_k)` and `(…, d_v)`; with a cache, projected once for all tokens."""
        current_cache = cache
        if isinstance(cache, EncoderDecoderCache):
            current_cache = cache.cross_attention_cache
            if self.layer_idx is not None and cache.is_updated.get(self.layer_idx):
                layer: Any = current_cache.layers[self.layer_idx]  # transformers' type admits layers without keys
                return layer.keys, layer.values
        key, value = self._extend(current_cache, *joint_linear(source, (self.k_proj, self.v_proj)))
        if isinstance(cache, EncoderDecoderCache):
            assert self.layer_idx is not None
            cache.is_updated[self.layer_idx] = True
        return key, value

    def _extend(self, cache: Cache | None, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`(batch, length, num_heads * width)` → `(batch, num_heads, key_length, width)`, cached ones included."""
        key, value = self._split_heads(key, self.d_k), self._split_heads(value, self.d_v)
        if cache is None:
            return key, value
        assert self.layer_idx is not None  # only the decoder has a cache, and its attentions have an index
        cache = cache.self_attention_cache if isinstance(cache, EncoderDecoderCache) else cache
        return cache.update(key, value, self.layer_idx)

    @staticmethod
    def _split_heads(projected: torch.Tensor, width: int) -> torch.Tensor:
        """`(batch, length, num_heads * width)` → `(batch, num_heads, length, width)`."""
        return projected.unflatten(-1, (-1, width)).transpose(1, 2)


class RecurrentAttention(nn.Module, ABC):
    """Attention of an RNN's decoder: a score for each h_j of the source, softmax, and the weighted mean of the h_j."""

    k_proj: nn.Linear  # makes the keys, the same for every target token: `(batch, source_length, hidden_size)`

    @abstractmethod
    def scores(self, query: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        """`(batch, target_length, hidden_size)`, `(batch, source_length, hidden_size)` → score of every pair."""

    def forward(
        self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The context and the weights of each query, as `attend_with_scores` returns them."""
        return attend_with_scores(self.scores(query, keys), values, mask)


class AdditiveAttention(RecurrentAttention):
    """Bahdanau et al. (2015), appendix A.1.2: score(s, h_j) = v^T tanh(W s + U h_j)."""

    def __init__(self, config):
        super().__init__()
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.k_proj = nn.Linear(config.encoder_width, config.hidden_size, bias=False)
        self.v = nn.Linear(config.hidden_size, 1, bias=False)

    def scores(self, query: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(self.q_proj(query)[:, :, None] + keys[:, None])  # (batch, target_l., source_l., hidden)
        return self.v(hidden).squeeze(-1)


class MultiplicativeAttention(RecurrentAttention):
    """Luong et al. (2015), section 3.1, "general": score(s, h_j) = s^T W h_j."""

    def __init__(self, config):
        super().__init__()
        self.k_proj = nn.Linear(config.encoder_width, config.hidden_size, bias=False)

    def scores(self, query: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        return query @ keys.transpose(1, 2)


def attend_with_scores(
    scores: torch.Tensor, values: torch.Tensor, mask: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Softmax over the source, and the context: the mean of the source under these weights.

    Args:
        scores: `(batch, target_length, source_length)`.
        values: the encoder's output h_j, `(batch, source_length, encoder_width)`.
        mask: `(batch, source_length)`, true for real tokens; `None`: all are real.

    Returns:
        The context `(batch, target_length, encoder_width)`, and the weights of the one head,
        `(batch, 1, target_length, source_length)`.
    """
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None], torch.finfo(scores.dtype).min)
    weights = scores.softmax(dim=-1)[:, None]  # (batch, 1, target_length, source_length)
    return weights[:, 0].to(values.dtype) @ values, weights
