# SPDX-License-Identifier: Apache-2.0
"""Configuration of the Transformer of "Attention Is All You Need" (Vaswani et al., 2017, arXiv:1706.03762)."""

from .transformers_version import MINIMUM  # noqa: F401 -- refuses other versions before they fail on what follows

# isort: split
from copy import copy
from typing import TYPE_CHECKING, Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN

from .publishing import PublishedConfig

if TYPE_CHECKING:
    # Not imported, but found by transformers, which copies with a model whatever its files name in this way. Here and
    # not in `publishing`: transformers 4 copies what this file names and no more, and would not come to its refusal.
    from .generation import generate  # noqa: F401
    from .pipeline_translation import TranslationPipeline  # noqa: F401


@strict
class VanillaTransformerConfig(PublishedConfig):
    """Hyperparameters of a `VanillaTransformerModel`; the defaults are the paper's base model (Table 3).

    Args:
        vocab_size: number of types that source and target share (section 5.1: about 37,000 for en-de).
        d_model: width of the embeddings and of every sub-layer's output (section 3.1).
        d_ff: inner width of the feed-forward networks (section 3.3).
        num_layers: layers of the encoder, N in the paper.
        num_decoder_layers: layers of the decoder; `None`: as `num_layers`.
        num_heads: attention heads, h in the paper (section 3.2.2).
        d_k: width of one head's queries and keys; `None`: d_model / num_heads.
        d_v: width of one head's values; `None`: d_model / num_heads.
        dropout: rate on the output of each sub-layer and on embeddings + positions (section 5.4).
        attention_dropout: rate on the attention weights; 0 in the paper.
        activation_dropout: rate after the activation of the feed-forward networks; 0 in the paper.
        label_smoothing: epsilon of section 5.4, in torch's definition: the target distribution is
            (1 - epsilon) on the reference plus epsilon / vocab_size on every type, the reference included.
        norm_position: "post" is the paper's LayerNorm(x + Sublayer(x)); "pre" is x + Sublayer(LayerNorm(x)).
        final_layer_norm: one more LayerNorm after each stack. `None`: only with norm_position "pre", where
            the stacks would otherwise end without one; the paper has none.
        position_embedding: "sinusoidal" (section 3.5, no limit of length) or "learned" (Table 3, row E).
        sinusoid_layout: "interleaved" sines and cosines (section 3.5), or "concatenated": all sines, then all
            cosines, at the same frequencies (as in Marian).
        max_position_embeddings: rows of a learned position table; the sinusoid has no limit.
        attention_bias: biases in the four attention projections; the paper's formulas have none.
        activation_function: a key of `transformers.activations.ACT2FN`; "relu" in the paper.
        layer_norm_eps: epsilon of the layer normalisations; not stated in the paper, 1e-6 in tensor2tensor.
        scale_embedding: multiply embeddings by sqrt(d_model) (section 3.4).
        tie_word_embeddings: one matrix for source embedding, target embedding and the projection before the
            softmax (section 3.4).
        chunk_size_feed_forward: transformers' name; the feed-forward networks compute so many positions at a time,
            which takes less memory and gives the same; 0: all.

    Raises:
        ValueError: for a value outside its range; the message names the field, the value and what is allowed.
            A value of the wrong type raises huggingface_hub's `StrictDataclassFieldValidationError`.
    """

    model_type = "vanilla_transformer"
    published_classes = {
        "AutoConfig": "configuration_vanilla_transformer.VanillaTransformerConfig",
        "AutoModel": "modeling_vanilla_transformer.VanillaTransformerModel",
        "AutoModelForSeq2SeqLM": "modeling_vanilla_transformer.VanillaTransformerForConditionalGeneration",
    }
    base_model_fsdp_plan = {}  # encoder and decoder have their own
    attribute_map = {
        "hidden_size": "d_model",
        "num_hidden_layers": "num_layers",
        "num_attention_heads": "num_heads",
    }

    vocab_size: int = 37000
    d_model: int = 512
    d_ff: int = 2048
    num_layers: int = 6
    num_decoder_layers: int | None = None
    num_heads: int = 8
    d_k: int | None = None
    d_v: int | None = None
    dropout: float | int = 0.1
    attention_dropout: float | int = 0.0
    activation_dropout: float | int = 0.0
    label_smoothing: float | int = 0.1
    norm_position: Literal["post", "pre"] = "post"
    final_layer_norm: bool | None = None
    position_embedding: Literal["sinusoidal", "learned"] = "sinusoidal"
    sinusoid_layout: Literal["interleaved", "concatenated"] = "interleaved"
    max_position_embeddings: int = 1024
    attention_bias: bool = False
    activation_function: str = "relu"
    layer_norm_eps: float = 1e-6
    scale_embedding: bool = True
    tie_word_embeddings: bool = True
    use_cache: bool = True
    is_encoder_decoder: bool = True
    pad_token_id: int | None = 0
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2
    decoder_start_token_id: int = 1

    def __post_init__(self, **kwargs):
        self._check_sizes()
        if self.num_decoder_layers is None:
            self.num_decoder_layers = self.num_layers
        if self.d_k is None:
            self.d_k = self._width_of_a_head("d_k")
        if self.d_v is None:
            self.d_v = self._width_of_a_head("d_v")
        if self.final_layer_norm is None:
            self.final_layer_norm = self.norm_position == "pre"
        super().__post_init__(**kwargs)

    def _width_of_a_head(self, name: str) -> int:
        if self.d_model % self.num_heads:
            raise ValueError(
                f"num_heads={self.num_heads} does not divide d_model={self.d_model}; choose num_heads that divides "
                f"d_model, or set {name} yourself"
            )
        return self.d_model // self.num_heads

    def _check_sizes(self) -> None:
        positive = ("vocab_size", "d_model", "d_ff", "num_layers", "num_heads", "max_position_embeddings")
        for name in (*positive, "num_decoder_layers", "d_k", "d_v"):
            value = getattr(self, name)
            if value is not None and not 1 <= value <= 2**31:
                raise ValueError(f"{name}={value} must lie between 1 and 2^31")
        for name in ("dropout", "attention_dropout", "activation_dropout", "label_smoothing"):
            value = getattr(self, name)
            if not 0 <= value < 1:
                raise ValueError(f"{name}={value} must be at least 0 and less than 1")
        if self.chunk_size_feed_forward < 0:
            raise ValueError(f"chunk_size_feed_forward={self.chunk_size_feed_forward} must be at least 0")
        if self.layer_norm_eps <= 0:
            raise ValueError(f"layer_norm_eps={self.layer_norm_eps} must be greater than 0")
        if self.position_embedding == "sinusoidal" and self.d_model % 2:
            raise ValueError(f"d_model={self.d_model} must be even: each sine of the positions has its cosine")
        if self.activation_function not in ACT2FN:
            raise ValueError(
                f"activation_function={self.activation_function!r} is not known to transformers; "
                f"use one of {', '.join(sorted(ACT2FN))}"
            )

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> PreTrainedConfig:
        """As in transformers; the decoder's view counts the decoder's layers, which the caches are sized by."""
        if not decoder or encoder:
            return super().get_text_config(decoder=decoder, encoder=encoder)
        assert self.num_decoder_layers is not None  # since __post_init__
        config = copy(self)  # super's copy is deep, which `generate` would wait for three times in each call
        config.num_layers = self.num_decoder_layers
        return config


__all__ = ["VanillaTransformerConfig"]
