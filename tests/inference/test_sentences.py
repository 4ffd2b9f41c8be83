# SPDX-License-Identifier: Apache-2.0
"""Lines of several sentences, which are translated one by one."""

import pytest

from vanilla_transformer.inference.sentences import join_sentences, split_lines
from vanilla_transformer.inference.terms import LexicalConstraints
from vanilla_transformer.inference.translator import Translator

TEXT = ["Dr. Smith came.  Was it late? No!", "", " \t", "One", "你好。我是学生！"]


def test_sentences_joined_are_the_lines():
    line_of, sentences = split_lines(TEXT, "en")
    assert len(sentences) > len(TEXT)
    for i, line in enumerate(TEXT):
        own = [sentence for place, sentence in zip(line_of, sentences, strict=True) if place == i]
        assert "".join(own) == line
        assert join_sentences([sentence.strip() for sentence in own], own) == line.strip()


@pytest.mark.parametrize(
    ("translations", "sentences", "expected"),
    [
        (["A.", "B."], ["你。", "我。"], "A. B."),
        (["你。", "我。"], ["A. ", "B."], "你。我。"),
        (["", "B."], ["A. ", "B."], "B."),
        ([], [], ""),
    ],
)
def test_scripts_without_spaces_get_none(translations, sentences, expected):
    assert join_sentences(translations, sentences) == expected


@pytest.fixture
def translator(model_folder) -> Translator:
    return Translator.from_pretrained(model_folder, device="cpu")


def test_each_sentence_is_translated_by_itself(translator):
    """Symbols are letters with spaces between; "b?" is an unknown one."""
    lines = ["a b? c d", "", "e"]
    _, sentences = split_lines(lines[:1], "en")
    assert len(sentences) == 2
    first, second, third = translator.translate([*sentences, "e"])
    found = translator.translate(lines, split_sentences="en", max_batch_tokens=60)
    assert found == [join_sentences([first, second], sentences), "", third]


def test_errors_name_the_line_and_not_the_sentence(translator):
    with pytest.raises(ValueError, match="line 2 has 5 tokens, more than the limit of 4"):
        translator.translate(["a? b c d", "a? b c d e"], split_sentences="en", max_length=4)


@pytest.mark.parametrize(
    "options", [{"prefixes": ["a"]}, {"constraints": LexicalConstraints(in_lines=True)}, {"num_return_sequences": 2}]
)
def test_options_of_whole_lines_are_refused(translator, options):
    count = options.pop("num_return_sequences", 1)
    with pytest.raises(ValueError, match="split_sentences: prefixes, terms in lines, n-best"):
        list(translator.n_best(["a"], count, num_beams=2, split_sentences="en", **options))
