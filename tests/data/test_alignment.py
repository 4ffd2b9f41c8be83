# SPDX-License-Identifier: Apache-2.0
"""Pharaoh's format is read and refused by line, and tokens know their words."""

import pytest
from transformers import PreTrainedTokenizer

from vanilla_transformer.data.alignment import (
    format_alignment,
    parse_alignment,
    token_links,
    tokenize_words,
    words_of_tokens,
)
from vanilla_transformer.data.tokenizer import TokenizerConfig, train_tokenizer


def test_sure_links_are_possible_too():
    found = parse_alignment("0-0 2p1  1-1", "a b c", "x y")
    assert found.sure == {(0, 0), (1, 1)}
    assert found.possible == {(0, 0), (1, 1), (2, 1)}


def test_an_alignment_survives_being_written():
    links = [(0, 0), (0, 1), (12, 3)]
    assert sorted(parse_alignment(format_alignment(links), "w " * 13, "w " * 4).sure) == links


@pytest.mark.parametrize("entry", ["0", "0-", "-1-0", "0 - 1", "0:1", "a-b", "0-1p2", "²-0"])
def test_an_entry_that_is_no_link_is_refused_in_one_line(entry):
    with pytest.raises(ValueError, match="is no link of two words") as error:
        parse_alignment(entry, "a b c", "x y z")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("entry", ["3-0", "0-2", "0p9"])
def test_a_link_beyond_the_sentence_is_refused(entry):
    with pytest.raises(ValueError, match=f"'{entry}' links words from 0 of 3 source and 2 target words"):
        parse_alignment(entry, "a b c", "x y")


def test_a_token_has_the_words_that_it_has_characters_of():
    text = " the  cat sat "
    #         special, " the", "  ", "c", "at sa" of a tokenizer that joins words, "t ", beyond the text
    offsets = [(0, 0), (0, 4), (4, 6), (6, 7), (7, 12), (12, 14), (14, 14)]
    expected = [[], [0], [], [1], [1, 2], [2], []]
    assert [list(words) for words in words_of_tokens(text, offsets)] == expected


def test_bytes_of_a_word_belong_to_it():
    """The alphabet of bytes alone: "é" is two tokens, and spaces are tokens of their own."""
    tokenizer = train_tokenizer([""], TokenizerConfig(kind="bpe", vocab_size=259))
    [ids], [words] = tokenize_words(tokenizer, ["né  中\u3000a"])
    assert len(ids) == len(words)
    #                                            n    é é         中 3 times   U+3000, no-break as text  a    </s>
    assert [list(own) for own in words] == [[0], [0], [0], [], [], *[[1]] * 3, *[[]] * 3, [2], []]


def test_the_targets_words_come_from_the_targets_tokenizer():
    tokenizer = train_tokenizer(["a b"], TokenizerConfig(kind="symbols"))
    tokenizer.target_tokenizer = train_tokenizer(["xy z"], TokenizerConfig(kind="bpe", vocab_size=259))
    [ids], [words] = tokenize_words(tokenizer, ["xy z"], is_target=True)
    assert ids == tokenizer(text_target="xy z")["input_ids"]
    assert [list(own) for own in words] == [[0], [0], [], [1], []]


def test_linked_words_link_all_their_tokens():
    """Words "ab c" as a, b, c, </s>; words "x yz" as x, y, z, </s>: only sure links count."""
    source, target = [range(1), range(1), range(1, 2), range(0)], [range(1), range(1, 2), range(1, 2), range(0)]
    alignment = parse_alignment("0-0 1-1 0p1", "ab c", "x yz")
    assert token_links(alignment, source, target) == [(0, 0), (1, 0), (2, 1), (2, 2)]


def test_a_tokenizer_without_offsets_is_refused():
    class Slow(PreTrainedTokenizer):
        vocab_size = 0

        def get_vocab(self):
            return {}

    with pytest.raises(ValueError, match="Slow does not say where its tokens stand in the text"):
        tokenize_words(Slow(), ["a"])
