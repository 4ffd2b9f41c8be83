# SPDX-License-Identifier: Apache-2.0
"""Configuration of the Transformer of "Attention Is All You Need" (Vaswani et al., 2017, arXiv:1706.03762)."""

from .transformers_version import MINIMUM  # noqa: F401 -- refuses unsupported versions before an import fails on them

# isort: split
from typing import TYPE_CHECKING, Literal

from huggingface_hub.dataclasses import strict
from transformers.activations import ACT2FN

from .configuration_base import NOT_NEGATIVE, POSITIVE, RATE, SIZE, Seq2SeqConfig, bounded

if TYPE_CHECKING:
    # Never imported: transformers copies the files that a model's files name in this way. They stand here, with those
    # that they import, because transformers 4 copies the files that this one names, and no others.
    from .decoder import Decoder  # noqa: F401
    from .ensemble import EnsembleDecoder  # noqa: F401
    from .generation import generate  # noqa: F401
    from .language_tags import tag_options  # noqa: F401
    from .pipeline_translation import TranslationPipeline  # noqa: F401
    from .search import BeamSearch  # noqa: F401
    from .transformers_differences import CACHE  # noqa: F401


@strict
class VanillaTransformerConfig(Seq2SeqConfig):
    """Hyperparameters of a `VanillaTransformerModel`; the defaults are the paper's base model (Table 3).

    Args:
        vocab_size: size of the vocabulary that source and target share (section 5.1: about 37,000 for en-de).
        decoder_vocab_size: size of the target's own vocabulary; `None`: it is the source's, as in the paper.
        d_model: width of the embeddings and of every sub-layer's output (section 3.1).
        d_ff: inner width of the feed-forward networks (section 3.3).
        num_layers: layers of the encoder, N in the paper.
        num_decoder_layers: layers of the decoder; `None`: as `num_layers`.
        num_heads: attention heads, h in the paper (section 3.2.2).
        d_k, d_v: width of one head's queries and keys, and of its values; `None`: d_model / num_heads.
        dropout: rate on the output of each sub-layer and on embeddings + positions (section 5.4).
        attention_dropout: rate on the attention weights; 0 in the paper.
        activation_dropout: rate after the activation of the feed-forward networks; 0 in the paper.
        label_smoothing: epsilon of section 5.4, in torch's definition: the target distribution is
            (1 - epsilon) on the reference plus epsilon / vocab_size on every token, the reference included.
        norm_position: "post" is the paper's LayerNorm(x + Sublayer(x)); "pre" is x + Sublayer(LayerNorm(x)).
        final_layer_norm: a LayerNorm after each stack; the paper has none. `None`: only with norm_position "pre",
            where the stacks would otherwise end without one.
        embedding_layer_norm: a LayerNorm of embeddings + positions, as in BART and fairseq's layernorm_embedding; the
            paper has none.
        position_embedding: "sinusoidal" (section 3.5, no limit of length) or "learned" (Table 3, row E).
        sinusoid_layout: "interleaved" sines and cosines (section 3.5), or "concatenated": all sines, then all
            cosines, at the same frequencies (as in transformers' MarianMT).
        sinusoid_exponent: "paper": 10000^(-2i / d_model); "tensor2tensor": 10000^(-i / (d_model / 2 - 1)), also in
            fairseq, transformers' FSMT and M2M100, Marian and OpenNMT-py's SinusoidalConcat, all of them with
            sinusoid_layout "concatenated".
        position_offset: the number of the first token's position; 2 in fairseq, BART and FSMT, whose lower numbers
            belong to padding.
        max_position_embeddings: length of the longest sequence for learned positions; the sinusoid has no limit.
        attention_bias: biases in the four attention projections; the paper's formulas have none.
        projection_bias: a bias in the projection before the softmax, as Marian has it; the paper has none.
        activation_function: a key of `transformers.activations.ACT2FN`; "relu" in the paper.
        layer_norm_eps: epsilon of the layer normalisations; not stated in the paper, 1e-6 in tensor2tensor.
        scale_embedding: multiply embeddings by sqrt(d_model) (section 3.4).
        tie_word_embeddings: one matrix for target embedding and the projection before the softmax (section 3.4).
        share_encoder_decoder_embeddings: one matrix for source embedding and target embedding (section 3.4); `None`:
            as `tie_word_embeddings`.
        chunk_size_feed_forward: positions that the feed-forward networks compute at a time, to save memory; 0: all.

    Raises:
        ValueError: a value outside its range.
        StrictDataclassFieldValidationError: a value of the wrong type (huggingface_hub's error).
    """

    model_type = "vanilla_transformer"
    attribute_map = {
        "hidden_size": "d_model",
        "num_hidden_layers": "num_layers",
        "num_attention_heads": "num_heads",
    }

    vocab_size: int = bounded(SIZE, 37000)
    d_model: int = bounded(SIZE, 512)
    d_ff: int = bounded(SIZE, 2048)
    num_layers: int = bounded(SIZE, 6)
    num_heads: int = bounded(SIZE, 8)
    d_k: int | None = bounded(SIZE, None)
    d_v: int | None = bounded(SIZE, None)
    dropout: float | int = bounded(RATE, 0.1)
    attention_dropout: float | int = bounded(RATE, 0.0)
    activation_dropout: float | int = bounded(RATE, 0.0)
    label_smoothing: float | int = bounded(RATE, 0.1)
    norm_position: Literal["post", "pre"] = "post"
    final_layer_norm: bool | None = None
    embedding_layer_norm: bool = False
    position_embedding: Literal["sinusoidal", "learned"] = "sinusoidal"
    sinusoid_layout: Literal["interleaved", "concatenated"] = "interleaved"
    sinusoid_exponent: Literal["paper", "tensor2tensor"] = "paper"
    position_offset: int = bounded(NOT_NEGATIVE, 0)
    max_position_embeddings: int = bounded(SIZE, 1024)
    attention_bias: bool = False
    projection_bias: bool = False
    activation_function: str = "relu"
    layer_norm_eps: float = bounded(POSITIVE, 1e-6)
    scale_embedding: bool = True
    tie_word_embeddings: bool = True
    chunk_size_feed_forward: int = bounded(NOT_NEGATIVE, 0)

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        if None in (self.d_k, self.d_v) and self.d_model % self.num_heads:
            raise ValueError(
                f"num_heads={self.num_heads} does not divide d_model={self.d_model}; choose num_heads that divides "
                "d_model, or set d_k and d_v yourself"
            )
        self.d_k = self.d_model // self.num_heads if self.d_k is None else self.d_k
        self.d_v = self.d_model // self.num_heads if self.d_v is None else self.d_v
        if self.final_layer_norm is None:
            self.final_layer_norm = self.norm_position == "pre"
        if self.position_embedding == "sinusoidal" and self.d_model % 2:
            raise ValueError(f"d_model={self.d_model} must be even: each sine of the positions has its cosine")
        if self.activation_function not in ACT2FN:
            raise ValueError(
                f"activation_function={self.activation_function!r} is not known to transformers; "
                f"use one of {', '.join(sorted(ACT2FN))}"
            )


__all__ = ["VanillaTransformerConfig"]
