# SPDX-License-Identifier: Apache-2.0
"""Normalisation, and the filters that look at one pair: a filter's name is the reason of the pairs that it drops."""

import hashlib
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier

    from vanilla_transformer.preparation.configuration import FilterConfig

EXACT, NEAR = "exact duplicate", "near duplicate"
# In the order in which they are asked: the first reason counts.
REASONS = {
    "empty": "a side has no letter and no digit",
    "length": "a side has fewer than `min_length` or more than `max_length` characters",
    "length ratio": "a side has more than `max_length_ratio` times the characters of the other",
    "identical": "both sides are the same text, apart from capitals",
    "script": "fewer than `min_script_share` of a side's letters are of its scripts",
    "numbers": "both sides have digits, but not the same, apart from order and zeros",
    "overlap": "a side is a line of `held_out`, apart from capitals, spaces and punctuation",
    "language": "a side is in its language with a confidence below `min_language_confidence`",
    EXACT: "an earlier pair is the same",
    NEAR: "an earlier pair has a similarity of `near_duplicates` or more",
}
Filter = Callable[[str, str], bool]  # whether it drops the pair of source and target

_REMOVED = dict.fromkeys(
    [code for code in range(0xA0) if unicodedata.category(chr(code)) == "Cc" and not chr(code).isspace()] + [0xFEFF]
)
_DIGIT = re.compile(r"\d")


def normalise(text: str, unicode_form: str | None) -> str:
    """Without control characters and byte order marks, all white space single spaces, in the Unicode form."""
    if unicode_form is not None:
        text = unicodedata.normalize(unicode_form, text)  # pyright: ignore[reportArgumentType] -- a Literal of the config
    return " ".join(text.translate(_REMOVED).split())


def text_key(text: str) -> bytes:
    """Eight bytes that are equal for texts that differ in capitals, spaces and punctuation alone."""
    return _digest("".join(filter(str.isalnum, text.casefold())))


def pair_key(source: str, target: str) -> bytes:
    """Eight bytes that are equal for equal pairs: among 10 million others by chance with probability 3e-6."""
    return _digest(f"{source}\n{target}")


def pair_filters(config: "FilterConfig", held_out: frozenset[bytes] = frozenset()) -> dict[str, Filter]:
    """Name → filter, for those that the configuration asks for.

    Args:
        held_out: `text_key` of each side of the pairs that are held out.
    """
    shortest, longest, ratio = config.min_length, config.max_length, config.max_length_ratio
    filters: dict[str, Filter] = {
        "empty": lambda source, target: not (any(map(str.isalnum, source)) and any(map(str.isalnum, target))),
        "length": lambda source, target: (
            not (
                shortest <= min(len(source), len(target))
                and (longest is None or max(len(source), len(target)) <= longest)
            )
        ),
    }
    if ratio is not None:
        filters["length ratio"] = lambda source, target: (
            max(len(source), len(target)) > ratio * min(len(source), len(target))
        )
    if config.identical:
        filters["identical"] = lambda source, target: source.casefold() == target.casefold()
    if drops := _either(_script_filter, config.min_script_share, config.source_scripts, config.target_scripts):
        filters["script"] = drops
    if config.numbers:
        filters["numbers"] = _numbers_differ
    if held_out:
        filters["overlap"] = lambda source, target: text_key(source) in held_out or text_key(target) in held_out
    confidence, languages = config.min_language_confidence, (config.source_language, config.target_language)
    if drops := _either(_language_filter, confidence, *languages):
        filters["language"] = drops
    return filters


def first_reason(filters: dict[str, Filter], source: str, target: str) -> str | None:
    """The name of the first filter that drops a normalised pair; `None` if it is kept."""
    return next((name for name, drops in filters.items() if drops(source, target)), None)


@cache
def language_identifier() -> "LanguageIdentifier":
    """py3langid's, with confidences that sum to 1 over its languages."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest()


def _either(build: Callable, bound: float, source: object, target: object) -> Filter | None:
    """A filter of pairs from those of a side; `None` if neither side has one."""
    of_source, of_target = (None if wanted is None else build(wanted, bound) for wanted in (source, target))
    if of_source is None and of_target is None:
        return None
    return lambda source, target: bool((of_source and of_source(source)) or (of_target and of_target(target)))


def _script_filter(scripts: Sequence[str], share: float) -> Callable[[str], bool]:
    import regex

    # Letters that many scripts share, such as the Japanese long vowel's mark, are of every script.
    own = "".join(rf"\p{{Script={script}}}" for script in (*scripts, "Common", "Inherited"))
    foreign, is_latin = regex.compile(rf"[\p{{L}}--[{own}]]", regex.VERSION1), "Latin" in scripts

    def drops(text: str) -> bool:
        if is_latin and text.isascii():
            return False
        return len(foreign.findall(text)) > (1 - share) * sum(map(str.isalpha, text))

    return drops


def _language_filter(language: str, confidence: float) -> Callable[[str], bool]:
    identifier = language_identifier()

    def drops(text: str) -> bool:
        best, confidence_of_best = identifier.classify(text)
        if best == language:
            return confidence_of_best < confidence
        return dict(identifier.rank(text))[language] < confidence  # takes a third longer than `classify`

    return drops


def _numbers_differ(source: str, target: str) -> bool:
    of_source, of_target = _DIGIT.findall(source), _DIGIT.findall(target)
    return bool(of_source and of_target) and _nonzero(of_source) != _nonzero(of_target)


def _nonzero(digits: Iterable[str]) -> list[int]:
    """In order, by value: ٣ is 3, and 10:00 is 10 o'clock."""
    return sorted(filter(None, map(int, digits)))
