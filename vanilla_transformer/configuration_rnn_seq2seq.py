# SPDX-License-Identifier: Apache-2.0
"""Configuration of the recurrent encoder-decoder that the Transformer replaced."""

from .transformers_version import MINIMUM  # noqa: F401 -- refuses other versions before they fail on what follows

# isort: split
from copy import copy
from typing import TYPE_CHECKING, Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from .publishing import PublishedConfig

if TYPE_CHECKING:
    # Not imported, but found by transformers, which copies with a model whatever its files name in this way. Here and
    # not in `publishing`: transformers 4 copies what this file names and no more, and would not come to its refusal.
    from .generation import generate  # noqa: F401
    from .pipeline_translation import TranslationPipeline  # noqa: F401


@strict
class RNNSeq2SeqConfig(PublishedConfig):
    """Hyperparameters of an `RNNSeq2SeqModel`; the defaults are those of Bahdanau et al. (2015, arXiv:1409.0473).

    Args:
        vocab_size: number of types that source and target share.
        embedding_size: width of the embeddings, and of what is multiplied with them before the softmax.
        hidden_size: width of the recurrent state, of each direction of the encoder and of the decoder.
        num_layers: recurrent layers of the encoder.
        num_decoder_layers: recurrent layers of the decoder; `None`: as `num_layers`.
        cell: "tanh" is the plain RNN h_t = tanh(W x_t + U h_{t-1} + b) (Elman 1990); "gru" (Cho et al. 2014) in
            torch's form, where the reset gate is applied after the product with U; "lstm" (Hochreiter and
            Schmidhuber 1997, with a forget gate).
        bidirectional: the encoder reads the source in both directions, each with `hidden_size` units.
        reverse_source: the encoder reads the source from its end (Sutskever et al. 2014, section 3.3).
        attention: "none": the decoder knows the source by the encoder's last state alone (Sutskever et al. 2014);
            "additive": v^T tanh(W s + U h_j) (Bahdanau et al. 2015); "multiplicative": s^T W h_j, called "general" by
            Luong et al. (2015, arXiv:1508.04025).
        input_feeding: what enters the decoder's recurrence beside the last word. "none": nothing, so that the whole
            target is computed at once in training; "context": the context that the previous state attends to
            (Bahdanau et al. 2015); "attentional": the previous attentional vector (Luong et al. 2015, section 3.3).
        residual: x + layer(x) wherever the widths of both agree (Wu et al. 2016).
        dropout: rate on the input of every recurrent layer, on the encoder's output and on what the softmax reads; not
            within the recurrence (Zaremba et al. 2014).
        label_smoothing: epsilon, as in `VanillaTransformerConfig`; none of the papers above has it.
        tie_word_embeddings: one matrix for source embedding, target embedding and the projection before the softmax;
            none of the papers above has it.

    Raises:
        ValueError: for a value outside its range, or values that exclude each other; the message names the field, the
            value and what is allowed. A value of the wrong type or an unknown name raises huggingface_hub's
            `StrictDataclassFieldValidationError`.
    """

    model_type = "rnn_seq2seq"
    published_classes = {
        "AutoConfig": "configuration_rnn_seq2seq.RNNSeq2SeqConfig",
        "AutoModel": "modeling_rnn_seq2seq.RNNSeq2SeqModel",
        "AutoModelForSeq2SeqLM": "modeling_rnn_seq2seq.RNNSeq2SeqForConditionalGeneration",
    }
    base_model_fsdp_plan = {}  # encoder and decoder have their own
    attribute_map = {"d_model": "hidden_size", "num_hidden_layers": "num_layers"}

    vocab_size: int = 30000
    embedding_size: int = 620
    hidden_size: int = 1000
    num_layers: int = 1
    num_decoder_layers: int | None = None
    cell: Literal["tanh", "gru", "lstm"] = "gru"
    bidirectional: bool = True
    reverse_source: bool = False
    attention: Literal["none", "additive", "multiplicative"] = "additive"
    input_feeding: Literal["none", "context", "attentional"] = "context"
    residual: bool = False
    dropout: float | int = 0.0
    label_smoothing: float | int = 0.0
    tie_word_embeddings: bool = False
    use_cache: bool = True
    is_encoder_decoder: bool = True
    pad_token_id: int | None = 0
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2
    decoder_start_token_id: int = 1

    def __post_init__(self, **kwargs):
        if self.num_decoder_layers is None:
            self.num_decoder_layers = self.num_layers
        for name in ("vocab_size", "embedding_size", "hidden_size", "num_layers", "num_decoder_layers"):
            value = getattr(self, name)
            if not 1 <= value <= 2**31:
                raise ValueError(f"{name}={value} must lie between 1 and 2^31")
        for name in ("dropout", "label_smoothing"):
            value = getattr(self, name)
            if not 0 <= value < 1:
                raise ValueError(f"{name}={value} must be at least 0 and less than 1")
        if self.chunk_size_feed_forward:
            raise ValueError(
                f"chunk_size_feed_forward={self.chunk_size_feed_forward}: an RNN has no feed-forward networks to "
                "compute in chunks; leave it at 0"
            )
        if self.bidirectional and self.reverse_source:
            raise ValueError(
                "reverse_source=True has no meaning with bidirectional=True, which reads from both ends; set "
                "one of them to False"
            )
        if self.attention == "none" and self.input_feeding != "none":
            raise ValueError(
                f"input_feeding={self.input_feeding!r} feeds what attention computes, and attention is 'none'; choose "
                "an attention, or input_feeding='none'"
            )
        super().__post_init__(**kwargs)

    @property
    def num_attention_heads(self) -> int:
        """1: the attention of Bahdanau and Luong is not divided. transformers' generic code reads it."""
        return 1

    @num_attention_heads.setter
    def num_attention_heads(self, value: int) -> None:
        if value != 1:
            raise ValueError(f"num_attention_heads={value}: the attention of an RNN is not divided; it is 1")

    @property
    def encoder_width(self) -> int:
        """Width of the encoder's output, which the decoder attends to."""
        return self.hidden_size * (2 if self.bidirectional else 1)

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> PreTrainedConfig:
        """As in transformers; the decoder's view counts the decoder's layers."""
        if not decoder or encoder:
            return super().get_text_config(decoder=decoder, encoder=encoder)
        assert self.num_decoder_layers is not None  # since __post_init__
        config = copy(self)  # super's copy is deep, which `generate` would wait for three times in each call
        config.num_layers = self.num_decoder_layers
        return config


__all__ = ["RNNSeq2SeqConfig"]
