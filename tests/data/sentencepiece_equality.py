# SPDX-License-Identifier: Apache-2.0
"""Ids of SentencePiece models beside those of SentencePiece, on lines of every script.

`python -m tests.data.sentencepiece_equality` trains models of each type and normalization, and prints the counts.
"""

import random
import unicodedata
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import sentencepiece

from tests.importing.conftest import LINES, train_sentencepiece
from vanilla_transformer.data.sentencepiece_tokenizer import open_sentencepiece

NUMBER = 10_000
MODELS: list[dict[str, Any]] = [
    {},
    {"normalization_rule_name": "nfkc"},
    {"normalization_rule_name": "nmt_nfkc_cf"},
    {"normalization_rule_name": "identity", "byte_fallback": True},
    {"remove_extra_whitespaces": False, "add_dummy_prefix": False},
]
EQUAL, TIE, OTHER = "equal", "ties", "other differences"


def lines_of_every_script(number: int, form: str = "NFC") -> list[str]:
    """Random words, each line from one block of 128 code points, in a normal form of Unicode."""
    draws, blocks = random.Random(1), {}
    for code in range(32, 0x110000):
        if unicodedata.category(chr(code)) not in ("Cn", "Cs", "Co"):
            blocks.setdefault(code // 128, []).append(chr(code))
    lines = []
    while len(lines) < number:
        for letters in blocks.values():
            words = ["".join(draws.choices(letters, k=draws.randint(1, 7))) for _ in range(draws.randint(1, 8))]
            lines.append(unicodedata.normalize(form, " ".join(words)))
    return lines[:number]


def compare(path: Path, lines: list[str]) -> dict[str, list[str]]:
    """The lines by `EQUAL`, or by the cause of their difference; of a tie both ways to cut have the same score."""
    processor: Any = sentencepiece.SentencePieceProcessor(str(path))
    tokenizer, found = open_sentencepiece(path), {EQUAL: [], TIE: [], OTHER: []}
    assert len(tokenizer) == processor.get_piece_size()
    for line, expected in zip(lines, processor.encode(lines), strict=True):
        ids = tokenizer(line)["input_ids"][:-1]
        pieces = ["".join(map(processor.id_to_piece, each)) for each in (ids, expected)]
        scores = [sum(map(processor.get_score, each)) for each in (ids, expected)]
        is_tie = pieces[0] == pieces[1] and abs(scores[0] - scores[1]) < 1e-4
        found[EQUAL if ids == expected else TIE if is_tie else OTHER].append(line)
    return found


def train(path: Path, kind: str, options: dict[str, Any], lines: list[str]) -> Path:
    lines = [*LINES * 5, *random.Random(1).sample(lines, 100)]
    return train_sentencepiece(path, lines, kind, vocab_size=2500, **{"character_coverage": 0.98} | options)


def main() -> None:
    forms = {form: [*LINES, *lines_of_every_script(NUMBER, form)] for form in ("NFC", "NFD")}
    with TemporaryDirectory() as folder:
        for kind in ("unigram", "bpe"):
            for options in MODELS:
                path = train(Path(folder, "own.model"), kind, options, forms["NFC"])
                for form, lines in forms.items():
                    counts = Counter({cause: len(found) for cause, found in compare(path, lines).items()})
                    words = ", ".join(f"{name}={value}" for name, value in options.items()) or "nmt_nfkc"
                    print(f"{kind}, {words}, {form}: {dict(counts)}", flush=True)


if __name__ == "__main__":
    main()
