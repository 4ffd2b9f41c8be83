# SPDX-License-Identifier: Apache-2.0
"""Configuration of the recurrent encoder-decoder that the Transformer replaced."""

from .transformers_version import MINIMUM  # noqa: F401 -- refuses unsupported versions before an import fails on them

# isort: split
from typing import TYPE_CHECKING, Literal

from huggingface_hub.dataclasses import strict

from .configuration_base import RATE, SIZE, Seq2SeqConfig, bounded

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
class RNNSeq2SeqConfig(Seq2SeqConfig):
    """Hyperparameters of an `RNNSeq2SeqModel`; the defaults are those of Bahdanau et al. (2015, arXiv:1409.0473).

    Args:
        vocab_size: size of the vocabulary that source and target share.
        decoder_vocab_size: size of the target's own vocabulary; `None`: it is the source's.
        embedding_size: width of the embeddings, and of the projection's input before the softmax.
        hidden_size: width of the recurrent state of the decoder, and of each direction of the encoder.
        num_layers: recurrent layers of the encoder.
        num_decoder_layers: recurrent layers of the decoder; `None`: as `num_layers`.
        cell: "tanh" is the plain RNN h_t = tanh(W x_t + U h_{t-1} + b) (Elman 1990); "gru" (Cho et al. 2014) in
            torch's form, where the reset gate is applied after the product with U; "lstm" (Hochreiter and
            Schmidhuber 1997, with a forget gate).
        bidirectional: the encoder reads the source in both directions, each with `hidden_size` units.
        reverse_source: the encoder reads the source from its end (Sutskever et al. 2014, section 3.3).
        attention: "none": the decoder reads the source from the encoder's last state alone (Sutskever et al. 2014);
            "additive": v^T tanh(W s + U h_j) (Bahdanau et al. 2015); "multiplicative": s^T W h_j, called "general" by
            Luong et al. (2015, arXiv:1508.04025).
        input_feeding: the decoder's second input beside the last token. "none": none, and training computes the
            whole target at once; "context": the context that the previous state attends to (Bahdanau et al. 2015);
            "attentional": the previous attentional vector (Luong et al. 2015, section 3.3).
        bridge: source of the decoder's first state. "counterparts": of the encoder's layers, see `Bridge`; "top":
            tanh(W h + b), where h is the hidden state of the encoder's top layer, for every layer and for the cell
            states too, as in JoeyNMT; "top_linear": the same without tanh.
        readout_bias: a bias in the attentional vector, as JoeyNMT has it; Luong et al. (2015) have none.
        residual: x + layer(x) wherever both widths agree (Wu et al. 2016).
        dropout: rate on the input of every recurrent layer, on the encoder's output and on the projection's input; not
            within the recurrence (Zaremba et al. 2014).
        label_smoothing: epsilon, as in `VanillaTransformerConfig`; none of the papers above has it.
        tie_word_embeddings: one matrix for target embedding and the projection before the softmax; none of the papers
            above has it.
        share_encoder_decoder_embeddings: one matrix for source embedding and target embedding; `None`: as
            `tie_word_embeddings`.

    Raises:
        ValueError: a value outside its range, or values that exclude each other.
        StrictDataclassFieldValidationError: a value of the wrong type, or an unknown name (huggingface_hub's error).
    """

    model_type = "rnn_seq2seq"
    attribute_map = {"d_model": "hidden_size", "num_hidden_layers": "num_layers"}

    vocab_size: int = bounded(SIZE, 30000)
    embedding_size: int = bounded(SIZE, 620)
    hidden_size: int = bounded(SIZE, 1000)
    num_layers: int = bounded(SIZE, 1)
    cell: Literal["tanh", "gru", "lstm"] = "gru"
    bidirectional: bool = True
    reverse_source: bool = False
    attention: Literal["none", "additive", "multiplicative"] = "additive"
    input_feeding: Literal["none", "context", "attentional"] = "context"
    bridge: Literal["counterparts", "top", "top_linear"] = "counterparts"
    readout_bias: bool = False
    residual: bool = False
    dropout: float | int = bounded(RATE, 0.0)
    label_smoothing: float | int = bounded(RATE, 0.0)
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
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
        if self.readout_bias and self.attention == "none" and self.embedding_size == self.hidden_size:
            raise ValueError(
                f"readout_bias=True: without attention and with embedding_size={self.embedding_size}, the hidden_size, "
                "the projection reads the state itself; set readout_bias to False"
            )

    @property
    def num_attention_heads(self) -> int:
        """1: the attention of Bahdanau and Luong is not divided. transformers' generic code reads it."""
        return 1

    @property
    def encoder_width(self) -> int:
        """Width of the encoder's output, which the decoder attends to."""
        return self.hidden_size * (2 if self.bidirectional else 1)


__all__ = ["RNNSeq2SeqConfig"]
