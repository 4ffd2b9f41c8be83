# SPDX-License-Identifier: Apache-2.0
"""Special tokens, tags of languages and the class of the saved tokenizer, for vocabularies of other toolkits."""

import re
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass

from tokenizers import AddedToken, Regex, Tokenizer, pre_tokenizers, processors

from vanilla_transformer.data.tokenizer_class import VanillaTransformerTokenizer

TAG = re.compile(r">>\S+<<")  # names the target language in OPUS-MT


@dataclass(frozen=True)
class SpecialTokens:
    """Names in the toolkit's vocabulary; `prefix` and `eos` stand around every text, `eos` if `appends_eos`."""

    pad: str = "<pad>"
    unk: str = "<unk>"
    eos: str | None = "</s>"
    bos: str | None = "<s>"
    prefix: str | None = None
    appends_eos: bool = True

    def names(self) -> list[str]:
        """The names that the toolkit has, each once."""
        return [name for name in dict.fromkeys((self.pad, self.bos, self.eos, self.unk)) if name is not None]

    def tags(self, vocabulary: Iterable[str]) -> list[str]:
        """The tags of target languages in a vocabulary, in its order."""
        return [token for token in vocabulary if TAG.fullmatch(token)]

    def check(self, vocabulary: Sequence[str], origin: str) -> None:
        """Raise ValueError if the vocabulary lacks a name; `origin` names the source, for the message."""
        for name in self.names():
            if name not in vocabulary:
                raise ValueError(f"the vocabulary of {origin} has no token {name!r}")


def append_missing(vocabulary: list[str], tokens: Iterable[str]) -> None:
    """Append the tokens that the vocabulary lacks; the model gets copies of the unknown token's row for them."""
    known = set(vocabulary)
    vocabulary.extend(token for token in dict.fromkeys(tokens) if token not in known)


def without_names(special: SpecialTokens, known: Container[str]) -> pre_tokenizers.PreTokenizer:
    """The names of special tokens in a text are text: they are split.

    Args:
        known: the pieces. The split comes after the first character among them: it parts no run of unknown ones.
    """
    parts = []
    for name in special.names():
        cut = next((place for place, character in enumerate(name, start=1) if character in known), 1)
        parts.append(f"{re.escape(name[:cut])}(?={re.escape(name[cut:])})")
    return pre_tokenizers.Split(Regex("|".join(parts)), "merged_with_previous")


def fast_tokenizer(tokenizer: Tokenizer, vocabulary: list[str], special: SpecialTokens) -> VanillaTransformerTokenizer:
    """The tokenizer with its template and special tokens, as `train_tokenizer` makes it."""
    eos = special.eos if special.appends_eos else None
    ends = [(name, vocabulary.index(name)) for name in dict.fromkeys((special.prefix, eos)) if name is not None]
    before = f"{special.prefix} " if special.prefix is not None else ""
    after = f" {eos}" if eos is not None else ""
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{before}$A{after}", pair=f"{before}$A{after} $B{after}", special_tokens=ends
    )
    tokenizer.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in special.tags(vocabulary)])
    return VanillaTransformerTokenizer(
        tokenizer_object=tokenizer,
        pad_token=special.pad,
        bos_token=special.bos,
        eos_token=special.eos,
        unk_token=special.unk,
        padding_side="right",
        split_special_tokens=True,  # "</s>" in a user's text is text
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )
