# SPDX-License-Identifier: Apache-2.0
"""The Transformer of "Attention Is All You Need" (Vaswani et al., 2017), section 3.1 and Figure 1."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import GenerationMixin
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, DynamicCache, EncoderDecoderCache
from transformers.masking_utils import create_bidirectional_mask, create_causal_mask
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .attention import MultiHeadAttention
from .configuration_vanilla_transformer import VanillaTransformerConfig
from .dropout import Dropout
from .embeddings import InputEmbedding, embed_inputs, infer_source_mask, positions_of_real_tokens
from .fused_decoder import FusedDecoder
from .linear import Linear
from .seq2seq_base import (
    BaseEncoderDecoder,
    BaseForConditionalGeneration,
    Seq2SeqEncoderOutput,
    Seq2SeqPreTrainedModel,
)
from .transformers_differences import (
    BaseModelOutputWithPastAndCrossAttentions,
    GradientCheckpointingLayer,
    OutputRecorder,
    deprecate_kwarg,
)


class FeedForward(nn.Module):
    """Section 3.3: FFN(x) = max(0, x W_1 + b_1) W_2 + b_2."""

    def __init__(self, config: VanillaTransformerConfig):
        super().__init__()
        self.linear_1 = Linear(config.d_model, config.d_ff)
        self.activation = ACT2FN[config.activation_function]
        self.dropout = Dropout(config.activation_dropout)  # a departure: the paper has none here
        self.linear_2 = Linear(config.d_ff, config.d_model)
        self.chunk_size = config.chunk_size_feed_forward  # in positions; 0: all at once

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """`(batch, length, d_model)` → `(batch, length, d_model)`."""
        if 0 < self.chunk_size < hidden_states.shape[1]:
            # transformers' apply_chunking_to_forward refuses lengths that are no multiple of the chunk.
            chunks = hidden_states.split(self.chunk_size, dim=1)
            return torch.cat([self.forward(chunk) for chunk in chunks], dim=1)
        inner = self.activation(self.linear_1(hidden_states))  # (batch, length, d_ff)
        return self.linear_2(self.dropout(inner))


class AddAndLayerNorm(nn.LayerNorm):
    """The boxes "Add & Norm" of Figure 1: LayerNorm(x + Dropout(Sublayer(x))) (sections 3.1 and 5.4).

    With norm_position "pre", a departure from the paper: x + Dropout(Sublayer(LayerNorm(x))).
    """

    def __init__(self, config: VanillaTransformerConfig):
        super().__init__(config.d_model, eps=config.layer_norm_eps)
        self.is_pre_norm = config.norm_position == "pre"
        self.dropout = Dropout(config.dropout)

    def forward(self, hidden_states: torch.Tensor, sublayer: Callable) -> torch.Tensor:  # pyright: ignore[reportIncompatibleMethodOverride] -- a LayerNorm of a sum has two inputs
        """`(batch, length, d_model)` → `(batch, length, d_model)`.

        Args:
            sublayer: a function of the same shapes. It is no module, because Accelerate moves the modules among the
                arguments to the device of this one.
        """
        norm = super().forward
        if self.is_pre_norm:
            return self.dropout.add(hidden_states, sublayer(norm(hidden_states)))
        return norm(self.dropout.add(hidden_states, sublayer(hidden_states))).to(hidden_states.dtype)


class EncoderLayer(GradientCheckpointingLayer):
    """Section 3.1, left half of Figure 1: self-attention, then the feed-forward network."""

    def __init__(self, config: VanillaTransformerConfig):
        super().__init__()
        self.self_attention = MultiHeadAttention(config)
        self.self_attention_norm = AddAndLayerNorm(config)
        self.feed_forward = FeedForward(config)
        self.feed_forward_norm = AddAndLayerNorm(config)

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs
    ) -> torch.Tensor:
        """`(batch, source_length, d_model)` → `(batch, source_length, d_model)`."""
        hidden_states = self.self_attention_norm(
            hidden_states, lambda x: self.self_attention(x, attention_mask, **kwargs)[0]
        )
        return self.feed_forward_norm(hidden_states, lambda x: self.feed_forward(x))


class DecoderLayer(GradientCheckpointingLayer):
    """Section 3.1, right half of Figure 1: masked self-attention, attention over the source, feed-forward."""

    def __init__(self, config: VanillaTransformerConfig, layer_idx: int):
        super().__init__()
        self.self_attention = MultiHeadAttention(config, is_causal=True, layer_idx=layer_idx)
        self.self_attention_norm = AddAndLayerNorm(config)
        self.cross_attention = MultiHeadAttention(config, layer_idx=layer_idx)
        self.cross_attention_norm = AddAndLayerNorm(config)
        self.feed_forward = FeedForward(config)
        self.feed_forward_norm = AddAndLayerNorm(config)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None,
        encoder_hidden_states: torch.Tensor,
        encoder_attention_mask: torch.Tensor | None = None,
        cache: Cache | None = None,
        **kwargs,
    ) -> torch.Tensor:
        """`(batch, target_length, d_model)` → `(batch, target_length, d_model)`."""
        kwargs["cache"] = cache
        hidden_states = self.self_attention_norm(
            hidden_states, lambda x: self.self_attention(x, attention_mask, **kwargs)[0]
        )
        hidden_states = self.cross_attention_norm(
            hidden_states,
            lambda x: self.cross_attention(x, encoder_attention_mask, encoder_hidden_states, **kwargs)[0],
        )
        return self.feed_forward_norm(hidden_states, lambda x: self.feed_forward(x))


def padding_mask(
    config: VanillaTransformerConfig,
    embedded: torch.Tensor,
    attention_mask: torch.Tensor | None,
    encoder_hidden_states: torch.Tensor | None = None,
) -> Any:
    """transformers' mask over the source, in the form of the attention backend; `None` where nothing is masked.

    On a CPU a mask without padding becomes `None` too. Elsewhere looking for padding would wait for the device.
    """
    may_look = embedded.device.type == "cpu"
    options: Any = {"encoder_hidden_states": encoder_hidden_states, "allow_is_bidirectional_skip": may_look}
    return create_bidirectional_mask(config, embedded, attention_mask, **options)


def tensor_parallel_plan(*attentions: str) -> dict[str, str]:
    """transformers' plan for a stack whose layers have these attentions: it divides the heads, and the width d_ff."""
    colwise = ["feed_forward.linear_1", *(f"{name}.{letter}_proj" for name in attentions for letter in "qkv")]
    rowwise = ["feed_forward.linear_2", *(f"{name}.out_proj" for name in attentions)]
    return {f"layers.*.{name}": "colwise" for name in colwise} | {f"layers.*.{name}": "rowwise" for name in rowwise}


class VanillaTransformerPreTrainedModel(Seq2SeqPreTrainedModel):
    """The base of encoder, decoder and whole model: the class attributes that transformers reads."""

    config_class = VanillaTransformerConfig
    config: VanillaTransformerConfig  # pyright: ignore[reportIncompatibleVariableOverride] -- transformers' idiom
    _no_split_modules = ["EncoderLayer", "DecoderLayer"]
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True


class VanillaTransformerEncoder(VanillaTransformerPreTrainedModel):
    """Section 3.1: a stack of `num_layers` identical layers over the embedded source."""

    _can_record_outputs = {"hidden_states": EncoderLayer, "attentions": MultiHeadAttention}
    _tp_plan = tensor_parallel_plan("self_attention")
    _fsdp_plan = {"layers.*": "free_full_weight"}  # embeddings may be tied, and are sharded with the whole model

    def __init__(self, config: VanillaTransformerConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.d_model)
        self.input_embedding = InputEmbedding(config)
        self.layers = nn.ModuleList([EncoderLayer(config) for _ in range(config.num_layers)])
        # A departure: the paper has no LayerNorm after the last layer; pre-norm stacks need it.
        self.norm = nn.LayerNorm(config.d_model, config.layer_norm_eps) if config.final_layer_norm else nn.Identity()
        self.gradient_checkpointing = False
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs,
    ) -> Seq2SeqEncoderOutput:
        """Encode the source.

        Args:
            input_ids: `(batch, source_length)`.
            attention_mask: `(batch, source_length)`, 1 for real tokens. `None`: inferred from `pad_token_id` when
                `input_ids` are given, else every position is real.
            inputs_embeds: `(batch, source_length, d_model)` instead of `input_ids`, before the scaling by
                sqrt(d_model).

        Raises:
            ValueError: both or neither of `input_ids` and `inputs_embeds`; a source beyond learned positions.
        """
        embedded = embed_inputs(self.embed_tokens, input_ids, inputs_embeds)  # (batch, source_length, d_model)
        if attention_mask is None:
            attention_mask = infer_source_mask(input_ids, embedded, self.config.pad_token_id)

        position_ids = positions_of_real_tokens(attention_mask)  # (batch, source_length)
        hidden_states = self.input_embedding(embedded, position_ids, max_length=embedded.shape[1])
        mask = padding_mask(self.config, embedded, attention_mask)
        for layer in self.layers:
            hidden_states = layer(hidden_states, mask, **kwargs)  # (batch, source_length, d_model)
        return Seq2SeqEncoderOutput(self.norm(hidden_states), attention_mask=attention_mask)


class VanillaTransformerDecoder(VanillaTransformerPreTrainedModel):
    """Section 3.1: a stack of `num_decoder_layers` identical layers over the embedded target and the source."""

    _can_record_outputs = {
        "hidden_states": OutputRecorder(DecoderLayer, num_hidden_layers_key="num_decoder_layers"),
        "attentions": OutputRecorder(MultiHeadAttention, index=1, layer_name="self_attention"),
        "cross_attentions": OutputRecorder(MultiHeadAttention, index=1, layer_name="cross_attention"),
    }
    _tp_plan = tensor_parallel_plan("self_attention", "cross_attention")
    _fsdp_plan = {"layers.*": "free_full_weight"}  # embeddings may be tied, and are sharded with the whole model

    def __init__(self, config: VanillaTransformerConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.decoder_vocab_size or config.vocab_size, config.d_model)
        self.input_embedding = InputEmbedding(config)
        assert config.num_decoder_layers is not None  # the config has filled it in
        self.layers = nn.ModuleList([DecoderLayer(config, layer_idx=i) for i in range(config.num_decoder_layers)])
        self.norm = nn.LayerNorm(config.d_model, config.layer_norm_eps) if config.final_layer_norm else nn.Identity()
        self.gradient_checkpointing = False
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    @deprecate_kwarg("past_key_values", "5.40.0", new_name="cache")
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        """Decode the target; position i sees the target up to i and the whole source.

        Args:
            input_ids: `(batch, target_length)`; with a `cache`, the tokens that are not in it yet.
            attention_mask: `(batch, cached + target_length)`, 1 for real tokens; `None`: all are real.
            encoder_hidden_states: `(batch, source_length, d_model)`.
            encoder_attention_mask: `(batch, source_length)`; `None`: all are real.
            cache: keys and values of earlier tokens (self-attention) and of the source.
            inputs_embeds: `(batch, target_length, d_model)` instead of `input_ids`.
            use_cache: make a cache when none is given, and return it.

        Raises:
            ValueError: both or neither of `input_ids` and `inputs_embeds`; no `encoder_hidden_states`; a target
                beyond learned positions.
        """
        # (batch, target_length, d_model)
        embedded = embed_inputs(self.embed_tokens, input_ids, inputs_embeds, prefix="decoder_")
        if encoder_hidden_states is None:
            raise ValueError("the decoder attends over the source: give encoder_hidden_states")
        if use_cache and cache is None:
            cache = EncoderDecoderCache(DynamicCache(config=self.config), DynamicCache(config=self.config))
        self_attention_cache = cache.self_attention_cache if isinstance(cache, EncoderDecoderCache) else cache

        target_length = embedded.shape[1]
        cached = self_attention_cache.get_seq_length() if self_attention_cache is not None else 0
        if attention_mask is not None and attention_mask.dim() == 2:
            position_ids = positions_of_real_tokens(attention_mask)[:, -target_length:]  # (batch, target_length)
        else:
            position_ids = torch.arange(target_length, device=embedded.device)[None] + cached  # (1, target_length)
        hidden_states = self.input_embedding(embedded, position_ids, max_length=cached + target_length)

        mask = create_causal_mask(self.config, embedded, attention_mask, self_attention_cache)
        source_mask = padding_mask(self.config, embedded, encoder_attention_mask, encoder_hidden_states)
        for layer in self.layers:  # gradient checkpointing needs the tensors as positional arguments
            hidden_states = layer(hidden_states, mask, encoder_hidden_states, source_mask, cache=cache, **kwargs)
        return BaseModelOutputWithPastAndCrossAttentions(self.norm(hidden_states), cache=cache)


class VanillaTransformerModel(BaseEncoderDecoder, VanillaTransformerPreTrainedModel):
    """Figure 1 up to the decoder's output: encoder and decoder, whose embeddings are one matrix if tied."""

    def __init__(self, config: VanillaTransformerConfig):
        super().__init__(config)
        self.encoder = VanillaTransformerEncoder(config)
        self.decoder = VanillaTransformerDecoder(config)
        self.post_init()


class VanillaTransformerForConditionalGeneration(
    BaseForConditionalGeneration, VanillaTransformerPreTrainedModel, GenerationMixin
):
    """Figure 1 as a whole: the model with the projection before the softmax, for translation."""

    decoder_class = FusedDecoder
    _tp_plan = {"lm_head": "colwise_gather_output"}

    def __init__(self, config: VanillaTransformerConfig):
        super().__init__(config)
        self.model = VanillaTransformerModel(config)
        vocab_size = config.decoder_vocab_size or config.vocab_size
        self.lm_head = Linear(config.d_model, vocab_size, bias=config.projection_bias)
        if config.position_embedding == "learned":
            self.max_target_positions = config.max_position_embeddings
        self.post_init()

    def _reorder_cache(self, cache: Cache, beam_idx: torch.LongTensor) -> Cache:
        """As in transformers, but leaves the source's keys and values, which all hypotheses of a sentence share."""
        self_attention_cache = cache.self_attention_cache if isinstance(cache, EncoderDecoderCache) else cache
        self_attention_cache.reorder_cache(beam_idx)
        return cache


__all__ = [
    "VanillaTransformerForConditionalGeneration",
    "VanillaTransformerModel",
    "VanillaTransformerPreTrainedModel",
]
