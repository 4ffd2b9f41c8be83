# SPDX-License-Identifier: Apache-2.0
"""A model as the page shows it: its answer to any text, for several visitors at once."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any

from vanilla_transformer.evaluation.attention_weights import explain
from vanilla_transformer.inference.translate import Translation
from vanilla_transformer.inference.translator import Translator
from vanilla_transformer.visualization.layer_attention import KIND_NAMES, MAX_TOKENS, AttentionWeights, Kind

MAX_CHARACTERS = 20_000  # longer texts are not tokenized
MAX_SENTENCE_TOKENS = 512  # of a sentence: seconds on a CPU, while other visitors wait
TRIAL = "a"  # any text


@dataclass(frozen=True)
class Answer:
    """A model's answer to one sentence."""

    translations: list[Translation]  # best first
    seconds: float  # of translating, without waiting for other visitors
    unknown: list[str]  # words of the sentence that the vocabulary lacks, each once
    spelled: str  # the unknown words as separate letters, if the vocabulary has all of them


class ShownModel:
    """A translator with a name, which takes one sentence at a time from any thread.

    Its constructor translates a trial sentence: errors appear at once, and the first visitor does not wait.

    Args:
        path: a model folder or Hub id.

    Attributes:
        views: name of a view of its attention → kind and layer; empty without attention.
        heads: name of a choice of heads → options of `select_layers`.
        no_attention_reason: why there are no views.

    Raises:
        ValueError, RuntimeError: it cannot translate.
    """

    def __init__(self, path: str):
        self.translator, self.path = Translator.from_pretrained(path), path
        model: Any = self.translator.model
        model_type = str(model.config.model_type)
        kinds = {"vanilla_transformer": "Transformer", "rnn_seq2seq": f"RNN ({getattr(model.config, 'cell', '')})"}
        self.kind = kinds.get(model_type, model_type)
        self.name = f"{self.kind}: {path}"
        self._lock = Lock()  # `explain` changes the model's attention backend meanwhile
        self.beams: int = model.generation_config.num_beams or 1
        self.views: dict[str, tuple[Kind, int]] = {}
        self.heads: dict[str, dict[str, Any]] = {}
        self.no_attention_reason = ""
        self.answer(TRIAL)
        try:
            attention = self.attention(TRIAL)
        except ValueError as error:  # an RNN may have no attention
            self.no_attention_reason = str(error)
        else:
            self.views, self.heads = _views(attention), _heads(attention)

    def answer(self, sentence: str) -> Answer:
        """As many translations as the model has beams.

        Raises:
            ValueError: the sentence is empty or too long, or the model refuses it.
            RuntimeError: decoding failed.
        """
        text = one_line(sentence)
        with self._lock:
            start = time.perf_counter()
            (translations,) = self.translator.n_best([text], self.beams, max_length=MAX_SENTENCE_TOKENS)
            seconds = time.perf_counter() - start
        unknown = self._unknown(text)
        spelled = " ".join(" ".join(word) for word in unknown)
        return Answer(translations, seconds, unknown, "" if self._unknown(spelled) else spelled)

    def attention(self, sentence: str) -> AttentionWeights:
        """The attention of the best translation.

        Raises:
            ValueError: as `answer`; more tokens than a picture can show; a model without attention.
            RuntimeError: decoding failed.
        """
        with self._lock:
            return explain(self.translator, one_line(sentence), max_length=MAX_TOKENS)[1]

    def _unknown(self, text: str) -> list[str]:
        tokenizer, words = self.translator.tokenizer, list(dict.fromkeys(text.split()))
        if tokenizer.unk_token_id is None or not words:
            return []
        encoded = tokenizer(words, add_special_tokens=False)["input_ids"]
        return [word for word, ids in zip(words, encoded, strict=True) if tokenizer.unk_token_id in ids]


def one_line(sentence: str) -> str:
    """A sentence as one line of encodable characters; raises ValueError if it is empty or too long."""
    if len(sentence) > MAX_CHARACTERS:
        raise ValueError(f"The text has {len(sentence):,} characters, more than {MAX_CHARACTERS:,}: shorten it.")
    text = " ".join(sentence.splitlines()).encode(errors="replace").decode()  # a browser may send half a surrogate pair
    if not text.strip():
        raise ValueError("There is nothing to translate yet: type a sentence.")
    return text


def _views(attention: AttentionWeights) -> dict[str, tuple[Kind, int]]:
    """Every layer of every kind of attention; the last layer's cross-attention, the alignment, first."""
    kinds: tuple[Kind, ...] = ("cross", "decoder", "encoder")
    views: dict[str, tuple[Kind, int]] = {}
    for kind in kinds:
        weights = getattr(attention, kind)
        count = 0 if weights is None else len(weights)
        views |= {f"{KIND_NAMES[kind]}, layer {layer} of {count}": (kind, layer) for layer in range(count, 0, -1)}
    return views


def _heads(attention: AttentionWeights) -> dict[str, dict[str, Any]]:
    """Choices of heads that every kind of attention has; the clearest in a small picture first."""
    kinds = (attention.cross, attention.decoder, attention.encoder)
    count = min(weights.shape[1] for weights in kinds if weights is not None)
    if count == 1:
        return {"the only head": {}}
    each = {f"head {head}": {"head": head} for head in range(1, count + 1)}
    return {"average of all heads": {"average": True}, "every head": {}} | each


def open_models(paths: Sequence[str]) -> list[ShownModel]:
    """Every model of a page; raises ValueError for a path given twice, and as `ShownModel`."""
    for path in paths:
        if paths.count(path) > 1:
            raise ValueError(f"models: {path} is given twice; give each once")
    return [ShownModel(path) for path in paths]
