# SPDX-License-Identifier: Apache-2.0
"""The terms of a line: its own, a terminology's, and its placeholders."""

import pytest

from vanilla_transformer.inference.terms import LexicalConstraints, read_terminology

TERMS = [("cat", "Katze"), ("black cat", "Rappe"), ("東京", "Tokio"), ("C++", "C++")]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("The cat and the black cat.", ["Katze", "Rappe"]),
        ("A catalogue of Cats, concat, cat's: cat", ["Katze", "Katze"]),
        ("C++, not C+++C++", ["C++", "C++", "C++"]),
        ("私は東京都に", ["Tokio"]),
        ("", []),
    ],
)
def test_a_terminology_is_found_by_whole_words_and_the_longest_first(line, expected):
    assert LexicalConstraints(terminology=TERMS).of(line) == (line, expected)


def test_terms_of_a_line_stand_behind_tabs():
    constraints = LexicalConstraints(in_lines=True, terminology=TERMS)
    assert constraints.of("a cat\t der Hund \t\tx y") == ("a cat", ["der Hund", "x y", "Katze"])
    assert LexicalConstraints(terminology=TERMS).of("a\tcat") == ("a\tcat", ["Katze"])


def test_placeholders_are_terms_as_often_as_they_occur():
    line = "{0} of <b>{name}</b>, {0}: <x1/> <br /> a < b > c {not one}"
    expected = ["{0}", "<b>", "{name}", "</b>", "{0}", "<x1/>", "<br />"]
    assert LexicalConstraints(placeholders=True).of(line) == (line, expected)


@pytest.mark.parametrize(
    ("pairs", "said"),
    [([("a", " ")], "neither term of"), ([("a", "b"), ("a", "c")], "'a' has two targets, 'b' and 'c'")],
)
def test_impossible_terminologies_are_refused(pairs, said):
    with pytest.raises(ValueError, match=f"terminology: .*{said}|terminology: {said}"):
        LexicalConstraints(terminology=pairs)


def test_a_terminology_file_has_two_terms_a_line(tmp_path):
    path = tmp_path / "terms.tsv"
    path.write_text("cat\tKatze\n\n black cat\tRappe \n", encoding="utf-8")
    assert read_terminology(path) == [("cat", "Katze"), ("black cat", "Rappe")]
    path.write_text("cat\tKatze\ndog\n", encoding="utf-8")
    with pytest.raises(ValueError, match="terms.tsv, line 2 must be 'source term <tab> target term'; it is 'dog'"):
        read_terminology(path)
