# SPDX-License-Identifier: Apache-2.0
"""A model as the page shows it: what it answers to whatever is typed, for several people at once."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np
from transformers import PreTrainedConfig

from vanilla_transformer.configuration_rnn_seq2seq import RNNSeq2SeqConfig
from vanilla_transformer.configuration_vanilla_transformer import VanillaTransformerConfig
from vanilla_transformer.evaluation.attention_weights import AttentionWeights, explain
from vanilla_transformer.inference.translate import Translation
from vanilla_transformer.inference.translator import Translator
from vanilla_transformer.visualization.layer_attention import KIND_NAMES, MAX_TOKENS, Kind

LONGEST_TEXT = 20_000  # characters; what is longer is not even made into tokens
LONGEST_SENTENCE = 512  # tokens: seconds on a CPU, while others wait
UNKNOWN_NAMED = 5  # words
TRIAL = "a"  # any text at all


@dataclass(frozen=True)
class Answer:
    """What a model says to one sentence.

    Args:
        translations: best first.
        seconds: that translating took, waiting for others not counted.
        unknown: words of the sentence that the vocabulary lacks, each once.
        spelt: the unknown words with their letters apart, if the vocabulary has all of those; else empty.
    """

    translations: list[Translation]
    seconds: float
    unknown: list[str]
    spelt: str


class ShownModel:
    """A translator with a name, which takes one sentence at a time, whoever asks.

    Opening it translates a trial sentence, so that what is broken is known at once and nobody waits for the first.

    `views` and `heads` name what can be drawn of its attention, and say how `select_layers` is told so. Without any,
    `why_no_attention` tells the reason.

    Raises:
        ValueError, RuntimeError: it cannot translate.
    """

    def __init__(self, translator: Translator, path: str):
        self.translator, self.path = translator, path
        self.kind = kind_of_model(translator.model.config)
        self._lock = Lock()  # the second pass of `explain` changes the model's attention backend meanwhile
        self.beams: int = translator.model.generation_config.num_beams or 1
        self.views: dict[str, tuple[Kind, int]] = {}
        self.heads: dict[str, dict[str, Any]] = {}
        self.why_no_attention = ""
        self.answer(TRIAL)
        try:
            attention = self.attention(TRIAL)
        except ValueError as error:  # an RNN without attention is a model all the same
            self.why_no_attention = str(error)
        else:
            self.views, self.heads = _views(attention), _heads(attention)

    @classmethod
    def open(cls, path: str) -> "ShownModel":
        """Open a model folder or Hub id.

        Raises:
            FileNotFoundError, ValueError: as `Translator.from_pretrained`; a model that cannot translate.
        """
        return cls(Translator.from_pretrained(path), path)

    @property
    def name(self) -> str:
        return f"{self.kind}: {self.path}"

    def answer(self, sentence: str) -> Answer:
        """The best translations, as many as the model has beams.

        Raises:
            ValueError: a sentence that is empty or too long, or that the model refuses; and as `translate_lines`.
            RuntimeError: decoding failed.
        """
        text = one_line(sentence)
        with self._lock:
            start = time.perf_counter()
            (translations,) = self.translator.n_best([text], self.beams, max_length=LONGEST_SENTENCE)
            seconds = time.perf_counter() - start
        unknown = self._unknown(text)
        spelt = " ".join(" ".join(word) for word in unknown)
        return Answer(translations, seconds, unknown, "" if self._unknown(spelt) else spelt)

    def attention(self, sentence: str) -> AttentionWeights:
        """What the model attends to when it makes the best of its translations.

        Raises:
            ValueError: as `answer`; more tokens than a picture can show; a model without attention.
            RuntimeError: decoding failed.
        """
        with self._lock:  # that `answer` asks for more of the search does not change its best
            return explain(self.translator, one_line(sentence), max_length=MAX_TOKENS)[1]

    def _unknown(self, text: str) -> list[str]:
        tokenizer, words = self.translator.tokenizer, list(dict.fromkeys(text.split()))
        if tokenizer.unk_token_id is None or not words:
            return []
        encoded = tokenizer(words, add_special_tokens=False)["input_ids"]
        return [word for word, ids in zip(words, encoded, strict=True) if tokenizer.unk_token_id in ids]


def one_line(sentence: str) -> str:
    """A sentence as a line of a corpus has it, of characters that can be encoded.

    Raises:
        ValueError: it is empty, or longer than `LONGEST_TEXT`.
    """
    if len(sentence) > LONGEST_TEXT:
        raise ValueError(f"The text has {len(sentence):,} characters, more than {LONGEST_TEXT:,}: shorten it.")
    text = " ".join(sentence.splitlines()).encode(errors="replace").decode()  # a browser may send half a surrogate pair
    if not text.strip():
        raise ValueError("There is nothing to translate yet: type a sentence.")
    return text


def kind_of_model(config: PreTrainedConfig) -> str:
    """A short name of what the model is."""
    if isinstance(config, VanillaTransformerConfig):
        return "Transformer"
    return f"RNN ({config.cell})" if isinstance(config, RNNSeq2SeqConfig) else config.model_type


def _views(attention: AttentionWeights) -> dict[str, tuple[Kind, int]]:
    """Every layer of every kind of attention; the last layer's cross-attention, the alignment, first."""
    weights: dict[Kind, np.ndarray | None] = {
        "cross": attention.cross,
        "decoder": attention.decoder,
        "encoder": attention.encoder,
    }
    views: dict[str, tuple[Kind, int]] = {}
    for kind, layers in weights.items():
        count = 0 if layers is None else len(layers)
        for layer in range(count, 0, -1):
            views[f"{KIND_NAMES[kind]}, layer {layer} of {count}"] = (kind, layer)
    return views


def _heads(attention: AttentionWeights) -> dict[str, dict[str, Any]]:
    """Which heads of a layer, of those that every kind has; first what is best seen in a small picture."""
    kinds = (attention.cross, attention.decoder, attention.encoder)
    count = min(weights.shape[1] for weights in kinds if weights is not None)
    if count == 1:
        return {"the only head": {}}
    each = {f"head {head}": {"head": head} for head in range(1, count + 1)}
    return {"average of all heads": {"average": True}, "every head": {}} | each


def open_models(paths: Sequence[str]) -> list[ShownModel]:
    """Every model of a page.

    Raises:
        ValueError: one that is given twice; and as `ShownModel.open`.
        FileNotFoundError: as `ShownModel.open`.
    """
    twice = [path for place, path in enumerate(paths) if path in paths[:place]]
    if twice:
        raise ValueError(f"models: {twice[0]} is given twice; give each once")
    return [ShownModel.open(path) for path in paths]
