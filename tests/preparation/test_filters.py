# SPDX-License-Identifier: Apache-2.0
"""Normalisation, and each filter of a pair by itself."""

import unicodedata

import pytest

from vanilla_transformer.preparation.configuration import FilterConfig
from vanilla_transformer.preparation.filters import first_reason, normalise, pair_filters, text_key

OFF = {"max_length": None, "max_length_ratio": None, "identical": False, "numbers": False}


def reason(source: str, target: str, held_out: frozenset[bytes] = frozenset(), **options) -> str | None:
    return first_reason(pair_filters(FilterConfig(**(OFF | options)), held_out), source, target)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("\ufeffa", "a"),
        (" a\u00a0\u2009b\t c\u3000", "a b c"),
        ("a\x00b\x1bc\x9f", "abc"),
        ("a\u2028b\r\x85c", "a b c"),
        ("क\u094d\u200dष", "क\u094d\u200dष"),  # a zero-width joiner is spelling
    ],
)
def test_normalisation_of_spaces_and_controls(raw: str, expected: str):
    assert normalise(raw, None) == expected


@pytest.mark.parametrize("form", ["NFC", "NFD", "NFKC", "NFKD"])
def test_unicode_forms(form):
    assert normalise("é ﬁ 가", form) == unicodedata.normalize(form, "é ﬁ 가")
    assert normalise("e\u0301 ﬁ", None) == "e\u0301 ﬁ"


@pytest.mark.parametrize("empty", ["", "…", "?! —", "☺"])
def test_a_side_without_letter_and_digit_is_empty(empty: str):
    assert reason("a", empty) == reason(empty, "a") == "empty"
    assert reason("1", "字") is None


def test_lengths_are_inclusive():
    assert reason("ab", "abc", min_length=2, max_length=3) is None
    assert reason("a", "abc", min_length=2) == reason("ab", "abcd", max_length=3) == "length"


def test_length_ratio_is_of_either_side():
    assert reason("ab", "abcdef", max_length_ratio=3.0) is None
    assert reason("ab", "abcdefg", max_length_ratio=3.0) == reason("abcdefg", "ab", max_length_ratio=3.0)
    assert reason("ab", "abcdefg", max_length_ratio=3.0) == "length ratio"


def test_identical_apart_from_capitals():
    assert reason("Straße", "STRASSE", identical=True) == "identical"
    assert reason("Straße", "Strasse.", identical=True) is None


@pytest.mark.parametrize(
    ("text", "scripts", "is_dropped"),
    [
        ("Привет, мир", ["Latin"], True),
        ("Привет, мир", ["Cyrillic"], False),
        ("Das Wort мир", ["Latin"], False),
        ("Das мир мир", ["Latin"], True),
        ("汉字とカタカナー", ["Han", "Hiragana", "Katakana"], False),
        ("汉字とカタカナー", ["Han"], True),
        ("12 — 34", ["Han"], False),
    ],
)
def test_scripts(text: str, scripts: list[str], is_dropped: bool):
    expected = "script" if is_dropped else None
    assert reason(text, "anything", source_scripts=scripts) == expected
    assert reason("anything", text, target_scripts=scripts) == expected


@pytest.mark.parametrize(
    ("source", "target", "agree"),
    [
        ("at 10:00", "um 10 Uhr", True),
        ("3,000.50 euros", "3.000,50 Euro", True),
        ("on 12/31", "am 31.12.", True),
        ("two dogs", "2 Hunde", True),
        ("٣ dogs", "3 Hunde", True),
        ("in 1989", "1998 und 1", False),
        ("page 4", "Seite 5", False),
    ],
)
def test_numbers(source: str, target: str, agree: bool):
    assert reason(source, target, numbers=True) == (None if agree else "numbers")


def test_languages_of_sentences():
    german, english = "Zwei Hunde spielen zusammen im Schnee.", "Two dogs are playing together in the snow."
    languages = {"source_language": "en", "target_language": "de"}
    assert reason(english, german, **languages) is None
    assert reason(german, english, **languages) == reason(english, english, **languages) == "language"
    assert reason(german, german, source_language="en") == "language"


def test_overlap_is_of_either_side_apart_from_capitals_and_punctuation():
    held_out = frozenset([text_key("Two dogs play."), text_key("Zwei Hunde spielen.")])
    assert (
        reason("two dogs play", "Anderes.", held_out) == reason("Other.", "»Zwei Hunde spielen«", held_out) == "overlap"
    )
    assert reason("Two dogs played.", "Zwei Hunde spielten.", held_out) is None
