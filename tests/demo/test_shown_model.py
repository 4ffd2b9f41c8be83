# SPDX-License-Identifier: Apache-2.0
"""A model's answers against its Translator's, for any text and for concurrent requests."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.demo.conftest import LETTERS
from vanilla_transformer.demo.shown_model import MAX_CHARACTERS, MAX_SENTENCE_TOKENS, ShownModel, open_models

SENTENCES = [" ".join(LETTERS[:length]) for length in (1, 3, 5, 8)]


@pytest.fixture(params=["transformer", "rnn"])
def model(request) -> ShownModel:
    return request.getfixturevalue(request.param)


def test_answers_are_the_translators_and_attention_is_of_the_best(model):
    answer, attention = model.answer("a b c"), model.attention("a b c")
    assert answer.translations == next(iter(model.translator.n_best(["a b c"], 3)))
    assert attention.source_tokens == ["a", "b", "c", "</s>"]
    written = [token for token in attention.target_tokens if token != "</s>"]
    assert " ".join(written) == answer.translations[0].text


def test_every_layer_and_head_can_be_drawn(model, rnn):
    kinds = {kind for kind, _ in model.views.values()}
    assert kinds == ({"cross"} if model is rnn else {"cross", "decoder", "encoder"})
    assert next(iter(model.views.values())) == ("cross", 1 if model is rnn else 2)  # the last layer
    assert len(model.heads) == (1 if model is rnn else 4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "nothing to translate"),
        (" \n\t ", "nothing to translate"),
        ("a " * MAX_SENTENCE_TOKENS, f"{MAX_SENTENCE_TOKENS + 1:,} tokens"),  # the end is a token
        ("a" * (MAX_CHARACTERS + 1), f"{MAX_CHARACTERS + 1:,} characters"),
    ],
)
def test_what_cannot_be_translated_is_refused(model, text, message):
    with pytest.raises(ValueError, match=message):
        model.answer(text)


@pytest.mark.parametrize("text", ["\ud83d", "\x00", "‮a", "a\r\nb", "\U0001f600" * 20, "́" * 500, "</s> <pad>"])
def test_strange_characters_are_text(model, text):
    assert len(model.answer(text).translations) == model.beams


def test_a_sentence_too_long_for_a_picture_is_translated(model):
    sentence = "a " * 150
    assert model.answer(sentence).translations
    with pytest.raises(ValueError, match="151 tokens, more than the limit of 100"):
        model.attention(sentence)


def test_unknown_words_are_spelled_by_letters_of_the_vocabulary(model):
    assert (model.answer("a b").unknown, model.answer("a b").spelled) == ([], "")
    answer = model.answer("bad a cab bad")
    assert (answer.unknown, answer.spelled) == (["bad", "cab"], "b a d c a b")
    answer = model.answer("bad zoo")
    assert (answer.unknown, answer.spelled) == (["bad", "zoo"], "")


def test_concurrent_requests_get_the_answers_of_single_ones(model):
    alone = [(model.answer(item).translations, model.attention(item).cross) for item in SENTENCES]

    def ask(place: int):
        sentence = SENTENCES[place % len(SENTENCES)]
        return model.answer(sentence).translations, model.attention(sentence).cross

    with ThreadPoolExecutor(8) as people:
        together = list(people.map(ask, range(2 * len(SENTENCES))))
    for place, (translations, cross) in enumerate(together):
        expected, weights = alone[place % len(SENTENCES)]
        assert translations == expected
        assert (cross == weights).all()


def test_a_model_without_attention_translates_and_says_why_there_is_no_picture(mute_folder):
    model = ShownModel(mute_folder)
    assert model.answer("a b").translations
    assert (model.views, model.heads) == ({}, {})
    assert "has no attention" in model.no_attention_reason


def test_a_model_given_twice_is_refused(transformer_folder):
    with pytest.raises(ValueError, match="is given twice"):
        open_models([transformer_folder, transformer_folder])
