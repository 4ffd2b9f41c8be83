# SPDX-License-Identifier: Apache-2.0
"""The Transformer of "Attention Is All You Need" (Vaswani et al., 2017), section 3.1 and Figure 1."""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, DynamicCache, EncoderDecoderCache
from transformers.masking_utils import create_bidirectional_mask, create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import (
    BaseModelOutput,
    BaseModelOutputWithPastAndCrossAttentions,
    Seq2SeqModelOutput,
)
from transformers.utils.deprecation import deprecate_kwarg
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .attention import MultiHeadAttention
from .configuration_vanilla_transformer import VanillaTransformerConfig
from .dropout import Dropout
from .embeddings import InputEmbedding, embedded_tokens, positions_of_real_tokens
from .fused_decoder import FusedDecoder
from .linear import Linear
from .seq2seq_base import BaseEncoderDecoder, BaseForConditionalGeneration


@dataclass
class VanillaTransformerEncoderOutput(BaseModelOutput):
    """`BaseModelOutput` with the mask of the source, which the decoder needs as well.

    Args:
        attention_mask: `(batch, source_length)`, 1 for real tokens; as given, or inferred from `pad_token_id`.
            It rides here so that `generate()` and users who pass `encoder_outputs` cannot lose it.
    """

    attention_mask: torch.Tensor | None = None


class FeedForward(nn.Module):
    """Section 3.3: FFN(x) = max(0, x W_1 + b_1) W_2 + b_2."""

    def __init__(self, config: VanillaTransformerConfig):
        super().__init__()
        self.linear_1 = Linear(config.d_model, config.d_ff)
        self.activation = ACT2FN[config.activation_function]
        self.dropout = Dropout(config.activation_dropout)  # 0 in the paper
        self.linear_2 = Linear(config.d_ff, config.d_model)
        self.positions_at_once = config.chunk_size_feed_forward  # 0: all

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """`(batch, length, d_model)` → `(batch, length, d_model)`."""
        if not self.positions_at_once:
            return self._transformed(hidden_states)
        # Not transformers' apply_chunking_to_forward, which refuses lengths that the chunk does not divide: in
        # generation every one but 1.
        chunks = hidden_states.split(self.positions_at_once, dim=1)
        return torch.cat([self._transformed(chunk) for chunk in chunks], dim=1)

    def _transformed(self, hidden_states: torch.Tensor) -> torch.Tensor:
        inner = self.activation(self.linear_1(hidden_states))  # (batch, positions, d_ff)
        return self.linear_2(self.dropout(inner) if self.dropout.training else inner)


class AddAndLayerNorm(nn.LayerNorm):
    """The boxes "Add & Norm" of Figure 1: LayerNorm(x + Dropout(Sublayer(x))) (sections 3.1 and 5.4).

    With norm_position "pre", a departure from the paper: x + Dropout(Sublayer(LayerNorm(x))).
    """

    def __init__(self, config: VanillaTransformerConfig):
        super().__init__(config.d_model, eps=config.layer_norm_eps)
        self.is_pre_norm = config.norm_position == "pre"
        self.dropout = Dropout(config.dropout)

    def sublayer_input(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """What the sub-layer reads: x itself (post-norm), or LayerNorm(x) (pre-norm)."""
        return self._norm(hidden_states) if self.is_pre_norm else hidden_states

    def forward(self, hidden_states: torch.Tensor, sublayer_output: torch.Tensor) -> torch.Tensor:  # pyright: ignore[reportIncompatibleMethodOverride] -- a LayerNorm of a sum has two inputs
        """Both `(batch, length, d_model)` → `(batch, length, d_model)`."""
        if self.dropout.training:  # a call that does nothing costs 3% of a step of decoding
            sublayer_output = self.dropout(sublayer_output)
        hidden_states = hidden_states + sublayer_output
        return hidden_states if self.is_pre_norm else self._norm(hidden_states)

    def _norm(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return nn.functional.layer_norm(hidden_states, self.normalized_shape, self.weight, self.bias, self.eps)


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
        attended, _ = self.self_attention(
            self.self_attention_norm.sublayer_input(hidden_states), attention_mask, **kwargs
        )
        hidden_states = self.self_attention_norm(hidden_states, attended)
        transformed = self.feed_forward(self.feed_forward_norm.sublayer_input(hidden_states))
        return self.feed_forward_norm(hidden_states, transformed)


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
        attended, _ = self.self_attention(
            self.self_attention_norm.sublayer_input(hidden_states), attention_mask, cache=cache, **kwargs
        )
        hidden_states = self.self_attention_norm(hidden_states, attended)
        attended, _ = self.cross_attention(
            self.cross_attention_norm.sublayer_input(hidden_states),
            encoder_attention_mask,
            encoder_hidden_states,
            cache=cache,
            **kwargs,
        )
        hidden_states = self.cross_attention_norm(hidden_states, attended)
        transformed = self.feed_forward(self.feed_forward_norm.sublayer_input(hidden_states))
        return self.feed_forward_norm(hidden_states, transformed)


# Tensor parallelism: each process has some of the heads and of the units between the feed-forward matrices.
ATTENTION_PLAN = {"q_proj": "colwise", "k_proj": "colwise", "v_proj": "colwise", "out_proj": "rowwise"}
FEED_FORWARD_PLAN = {"feed_forward.linear_1": "colwise", "feed_forward.linear_2": "rowwise"}


def plan_of_layers(*attentions: str) -> dict[str, str]:
    """transformers' plan of tensor parallelism for the layers of a stack with these attentions."""
    of_attentions = {f"{one}.{name}": style for one in attentions for name, style in ATTENTION_PLAN.items()}
    return {f"layers.*.{name}": style for name, style in (of_attentions | FEED_FORWARD_PLAN).items()}


class VanillaTransformerPreTrainedModel(PreTrainedModel):
    """What encoder, decoder and the whole model share: initialisation and what transformers must know of them."""

    config_class = VanillaTransformerConfig
    config: VanillaTransformerConfig  # pyright: ignore[reportIncompatibleVariableOverride] -- transformers' idiom
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["EncoderLayer", "DecoderLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """The paper states no initialisation; as in tensor2tensor: embeddings N(0, 1 / d_model), matrices Glorot."""
        if isinstance(module, nn.Linear):
            init.xavier_uniform_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            # Times sqrt(d_model) at the input: unit variance. As the tied projection: logits of order one.
            init.normal_(module.weight, mean=0.0, std=self.config.d_model**-0.5)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)

    @property
    def dummy_inputs(self) -> dict[str, torch.Tensor]:
        input_ids = torch.tensor([[3, 4, 2], [4, 2, self.config.pad_token_id]], device=self.device)
        return {"input_ids": input_ids, "decoder_input_ids": input_ids}


class VanillaTransformerEncoder(VanillaTransformerPreTrainedModel):
    """Section 3.1: a stack of `num_layers` identical layers over the embedded source."""

    _can_record_outputs = {"hidden_states": EncoderLayer, "attentions": MultiHeadAttention}
    _tp_plan = plan_of_layers("self_attention")
    _fsdp_plan = {"layers.*": "free_full_weight"}  # the tables may be one matrix, and stay with the whole model

    def __init__(self, config: VanillaTransformerConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.d_model)
        self.input_embedding = InputEmbedding(config)
        self.layers = nn.ModuleList([EncoderLayer(config) for _ in range(config.num_layers)])
        # The paper has none after the last layer; pre-norm stacks need one.
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
    ) -> VanillaTransformerEncoderOutput:
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
        embedded = embedded_tokens(self.embed_tokens, input_ids, inputs_embeds)  # (batch, source_length, d_model)
        if attention_mask is None and input_ids is not None and self.config.pad_token_id is not None:
            attention_mask = input_ids.ne(self.config.pad_token_id).long()  # (batch, source_length)
        batch, source_length, _ = embedded.shape
        if attention_mask is None:
            attention_mask = torch.ones(batch, source_length, dtype=torch.long, device=embedded.device)

        position_ids = positions_of_real_tokens(attention_mask)  # (batch, source_length)
        hidden_states = self.input_embedding(embedded, position_ids, longest=source_length)
        mask = create_bidirectional_mask(self.config, embedded, attention_mask)
        for layer in self.layers:
            hidden_states = layer(hidden_states, mask, **kwargs)  # (batch, source_length, d_model)
        return VanillaTransformerEncoderOutput(self.norm(hidden_states), attention_mask=attention_mask)


class VanillaTransformerDecoder(VanillaTransformerPreTrainedModel):
    """Section 3.1: a stack of `num_decoder_layers` identical layers over the embedded target and the source."""

    _can_record_outputs = {
        "hidden_states": OutputRecorder(DecoderLayer, num_hidden_layers_key="num_decoder_layers"),
        "attentions": OutputRecorder(MultiHeadAttention, index=1, layer_name="self_attention"),
        "cross_attentions": OutputRecorder(MultiHeadAttention, index=1, layer_name="cross_attention"),
    }
    _tp_plan = plan_of_layers("self_attention", "cross_attention")
    _fsdp_plan = {"layers.*": "free_full_weight"}  # the tables may be one matrix, and stay with the whole model

    def __init__(self, config: VanillaTransformerConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.d_model)
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
        embedded = embedded_tokens(self.embed_tokens, input_ids, inputs_embeds, prefix="decoder_")
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
        hidden_states = self.input_embedding(embedded, position_ids, longest=cached + target_length)

        mask = create_causal_mask(self.config, embedded, attention_mask, cache=self_attention_cache)
        source_mask = create_bidirectional_mask(
            self.config, embedded, encoder_attention_mask, encoder_hidden_states=encoder_hidden_states
        )
        for layer in self.layers:
            # Positional as far as gradient checkpointing needs tensors to be.
            hidden_states = layer(
                hidden_states, mask, encoder_hidden_states, source_mask, cache=cache, **kwargs
            )  # (batch, target_length, d_model)
        return BaseModelOutputWithPastAndCrossAttentions(self.norm(hidden_states), cache=cache)


class VanillaTransformerModel(BaseEncoderDecoder, VanillaTransformerPreTrainedModel):
    """Figure 1 up to the decoder's output: encoder and decoder, whose embeddings are one matrix if tied."""

    _tied_weights_keys = {"decoder.embed_tokens.weight": "encoder.embed_tokens.weight"}
    _auto_class = "AutoModel"  # so that transformers saves the code with the weights

    def __init__(self, config: VanillaTransformerConfig):
        super().__init__(config)
        self.encoder = VanillaTransformerEncoder(config)
        self.decoder = VanillaTransformerDecoder(config)
        self.post_init()

    @can_return_tuple
    @deprecate_kwarg("past_key_values", "5.40.0", new_name="cache")
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        decoder_input_ids: torch.Tensor | None = None,
        decoder_attention_mask: torch.Tensor | None = None,
        encoder_outputs: BaseModelOutput | tuple[torch.Tensor, ...] | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        decoder_inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs,
    ) -> Seq2SeqModelOutput:
        """Encode and decode; arguments and shapes are those of the encoder and of the decoder.

        Args:
            encoder_outputs: the encoder's output, when the source is already encoded. Its own mask is used when
                `attention_mask` is not given.
        """
        if encoder_outputs is None:
            encoded: BaseModelOutput = self.encoder(input_ids, attention_mask, inputs_embeds, **kwargs)
        elif isinstance(encoder_outputs, BaseModelOutput):
            encoded = encoder_outputs
        else:
            encoded = BaseModelOutput(*encoder_outputs[:3])  # pyright: ignore[reportArgumentType] -- transformers' tuple, whose second and third are tuples themselves
        if attention_mask is None and isinstance(encoded, VanillaTransformerEncoderOutput):
            attention_mask = encoded.attention_mask
        decoder_outputs = self.decoder(
            decoder_input_ids,
            decoder_attention_mask,
            encoder_hidden_states=encoded.last_hidden_state,
            encoder_attention_mask=attention_mask,
            cache=cache,
            inputs_embeds=decoder_inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        return Seq2SeqModelOutput(
            last_hidden_state=decoder_outputs.last_hidden_state,
            cache=decoder_outputs.cache,
            decoder_hidden_states=decoder_outputs.hidden_states,
            decoder_attentions=decoder_outputs.attentions,
            cross_attentions=decoder_outputs.cross_attentions,
            encoder_last_hidden_state=encoded.last_hidden_state,
            encoder_hidden_states=encoded.hidden_states,
            encoder_attentions=encoded.attentions,
        )


class VanillaTransformerForConditionalGeneration(
    BaseForConditionalGeneration, VanillaTransformerPreTrainedModel, GenerationMixin
):
    """Figure 1 as a whole: the model with the projection before the softmax, for translation."""

    _tied_weights_keys = {
        "model.decoder.embed_tokens.weight": "model.encoder.embed_tokens.weight",
        "lm_head.weight": "model.encoder.embed_tokens.weight",
    }
    _auto_class = "AutoModelForSeq2SeqLM"
    decoder_class = FusedDecoder
    _tp_plan = {"lm_head": "colwise_gather_output"}

    def __init__(self, config: VanillaTransformerConfig):
        super().__init__(config)
        self.model = VanillaTransformerModel(config)
        self.lm_head = Linear(config.d_model, config.vocab_size, bias=False)
        if config.position_embedding == "learned":
            self.longest_target = config.max_position_embeddings
        self.post_init()

    def _reorder_cache(self, cache: Cache, beam_idx: torch.LongTensor) -> Cache:
        """What transformers' beam search calls: keys and values of the target follow their hypotheses.

        Those of the source are the same for all hypotheses of a sentence, and stay.
        """
        own = cache.self_attention_cache if isinstance(cache, EncoderDecoderCache) else cache
        own.reorder_cache(beam_idx)
        return cache


__all__ = [
    "VanillaTransformerForConditionalGeneration",
    "VanillaTransformerModel",
    "VanillaTransformerPreTrainedModel",
]
