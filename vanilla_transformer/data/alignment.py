# SPDX-License-Identifier: Apache-2.0
"""Word alignments: Pharaoh's format, and the words that a tokenizer's tokens belong to."""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

Link = tuple[int, int]  # positions of a source word and of a target word, from 0; white space separates words
WORD = re.compile(r"\S+")
LINK = re.compile(r"([0-9]+)([-p])([0-9]+)")
NO_WORD = range(0)


@dataclass(frozen=True)
class WordAlignment:
    """The links of a pair, as Och and Ney (2003) distinguish them.

    Args:
        sure: the links that an aligner has to find.
        possible: the links that it may find: the sure ones and others.
    """

    sure: frozenset[Link]
    possible: frozenset[Link]


def parse_alignment(line: str, source: str, target: str) -> WordAlignment:
    """A line of Pharaoh's format: `0-0 1-2 …`, source word and target word; `1p2` is possible, but not sure.

    The letter p is that of github.com/lilt/alignment-scripts, which has the references of Zenkel et al. (2019).

    Raises:
        ValueError: an entry that is no link, or that links a word which the sentence does not have.
    """
    sizes = len(source.split()), len(target.split())
    links: dict[str, set[Link]] = {"-": set(), "p": set()}
    for entry in line.split():
        if not (match := LINK.fullmatch(entry)):
            raise ValueError(f"{entry!r} is no link of two words, such as 0-1, or 0p1 for one that is not sure")
        link = int(match[1]), int(match[3])
        if link[0] >= sizes[0] or link[1] >= sizes[1]:
            raise ValueError(f"{entry!r} links words from 0 of {sizes[0]} source and {sizes[1]} target words")
        links[match[2]].add(link)
    return WordAlignment(frozenset(links["-"]), frozenset(links["-"] | links["p"]))


def format_alignment(links: Iterable[Link]) -> str:
    """Links in Pharaoh's format."""
    return " ".join(f"{source}-{target}" for source, target in links)


def words_of_tokens(text: str, offsets: Sequence[tuple[int, int]]) -> list[range]:
    """The positions of the words that each token has characters of: none for white space and special tokens.

    Args:
        offsets: start and end of each token in the text, in characters.
    """
    spans = [match.span() for match in WORD.finditer(text)]
    starts, ends = [start for start, _ in spans], [end for _, end in spans]
    return [
        range(bisect_right(ends, start), bisect_left(starts, end)) if start < end else NO_WORD for start, end in offsets
    ]


def token_links(
    alignment: WordAlignment, source_words: Sequence[range], target_words: Sequence[range]
) -> list[tuple[int, int]]:
    """The positions of source and target tokens whose words have a sure link, sorted."""
    return sorted(
        {
            (source, target)
            for link in alignment.sure
            for source, words in enumerate(source_words)
            if link[0] in words
            for target, others in enumerate(target_words)
            if link[1] in others
        }
    )


def tokenize_words(
    tokenizer: Any, texts: Sequence[str], is_target: bool = False
) -> tuple[list[list[int]], list[list[range]]]:
    """The tokens of each text, and the words of each token.

    Raises:
        ValueError: a tokenizer that does not say where its tokens stand in the text.
    """
    if not tokenizer.is_fast:
        raise ValueError(
            f"{type(tokenizer).__name__} does not say where its tokens stand in the text, so that they cannot be "
            "merged to words; save the model with a fast tokenizer (tokenizer.json)"
        )
    if not texts:
        return [], []
    side = {"text_target" if is_target else "text": list(texts)}
    encoded = tokenizer(**side, return_offsets_mapping=True, return_attention_mask=False, verbose=False)
    words = [words_of_tokens(*pair) for pair in zip(texts, encoded["offset_mapping"], strict=True)]
    return encoded["input_ids"], words
