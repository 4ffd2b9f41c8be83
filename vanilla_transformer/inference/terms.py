# SPDX-License-Identifier: Apache-2.0
"""Terms that the translation of a line must contain: given with the line, by a terminology, or as placeholders."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from vanilla_transformer.data.corpus import read_lines
from vanilla_transformer.inference.target_text import LETTER, is_whole_word

PLACEHOLDERS = re.compile(r"\{\w*\}|</?\w+(?: ?/)?>")  # {}, {0}, {name}; <x1/>, <b>, </b>
WORDS = re.compile(rf"{LETTER}+|\S")


class LexicalConstraints:
    """Terms of each line's translation.

    Args:
        in_lines: lines are "source <tab> term <tab> term …", as for fairseq's `--constraints`.
        terminology: source terms and their target terms. Where a source has the former as whole words, in the same
            case, the target has the latter, as often; the longest term counts where several begin.
        placeholders: `{0}` and `<x1/>`, and whatever `PLACEHOLDERS` finds in a source, are terms.

    Raises:
        ValueError: an empty term; a source term with two target terms.
    """

    def __init__(self, in_lines: bool = False, terminology: Iterable[tuple[str, str]] = (), placeholders: bool = False):
        self.in_lines, self.placeholders = in_lines, placeholders
        self.terminology: dict[str, str] = {}
        self.by_first_word: dict[str, list[str]] = {}
        for pair in terminology:
            source, target = (term.strip() for term in pair)
            if not (source and target):
                raise ValueError(f"terminology: neither term of {pair} may be empty")
            if self.terminology.setdefault(source, target) != target:
                raise ValueError(
                    f"terminology: {source!r} has two targets, {self.terminology[source]!r} and {target!r}"
                )
        for source in sorted(self.terminology, key=len, reverse=True):
            first = WORDS.search(source)
            assert first is not None
            self.by_first_word.setdefault(first[0], []).append(source)

    def of(self, line: str) -> tuple[str, list[str]]:
        """The source and its terms."""
        source, *terms = line.split("\t") if self.in_lines else [line]
        terms = [term.strip() for term in terms if term.strip()]
        if self.placeholders:
            terms += PLACEHOLDERS.findall(source)
        if self.terminology:
            terms += self._found(source)
        return source, terms

    def _found(self, source: str) -> Sequence[str]:
        found, end = [], 0
        for word in WORDS.finditer(source):
            for term in self.by_first_word.get(word[0], ()):
                start, after = word.start(), word.start() + len(term)
                if start >= end and source.startswith(term, start) and is_whole_word(source, start, after):
                    found.append(self.terminology[term])
                    end = after
        return found


def read_terminology(path: str | Path) -> list[tuple[str, str]]:
    """A terminology file: "source term <tab> target term" in each line; blank lines are skipped.

    Raises:
        FileNotFoundError, ValueError: as `read_lines`; a line without exactly two terms.
    """
    pairs = []
    for number, line in enumerate(read_lines(path), start=1):
        terms = [term.strip() for term in line.split("\t")]
        if any(terms):
            if len(terms) != 2 or not all(terms):
                raise ValueError(f"{path}, line {number} must be 'source term <tab> target term'; it is {line!r}")
            pairs.append((terms[0], terms[1]))
    return pairs
