# SPDX-License-Identifier: Apache-2.0
"""Lines of several sentences, by the rules of Wikimedia's `sentencex` for about 300 languages, which it has inside."""

from collections.abc import Sequence

FULL_STOPS = ("。", "！", "？", "…", "．")  # of scripts without spaces


def split_lines(lines: Sequence[str], language: str) -> tuple[list[int], list[str]]:
    """The sentences of all lines, with the white space after them, and the index of each one's line.

    Args:
        language: such as "en"; of an unknown one `sentencex` splits by general rules.

    Raises:
        ModuleNotFoundError: `sentencex` is not installed.
    """
    from sentencex import segment

    sentences = [(i, sentence) for i, line in enumerate(lines) for sentence in segment(language, line) or [line]]
    return [i for i, _ in sentences], [sentence for _, sentence in sentences]


def join_sentences(translations: Sequence[str], sentences: Sequence[str]) -> str:
    """One line of the translations of its sentences, with the white space that stood between those, or a space."""
    line = ""
    for translation, sentence in zip(translations, sentences, strict=True):
        between = sentence[len(sentence.rstrip()) :] or " "
        line += translation + ("" if translation.endswith(FULL_STOPS) else between) if translation else ""
    return line.rstrip()
