# SPDX-License-Identifier: Apache-2.0
"""subword-nmt's BPE by its own algorithm, written here from its description (Sennrich et al. 2016)."""

from itertools import pairwise

import pytest

from vanilla_transformer.data.special_tokens import SpecialTokens
from vanilla_transformer.importing.word_tokenizer import read_codes, subword_tokenizer

CODES = "#version: 0.2\nl o\nlo w</w>\ne r</w>\nn e\nne w\nnew er</w>\nw i\nwi d\nlo w\nlow er</w>\n"
FIRST = ["<s>", "<pad>", "</s>", "<unk>"]


def segmented(word: str, merges: list[tuple[str, str]]) -> list[str]:
    """Merge the pair of the best rank, everywhere in the word, until none is left."""
    parts = [*word[:-1], f"{word[-1]}</w>"]
    ranks = {pair: rank for rank, pair in enumerate(merges)}
    while pairs := [pair for pair in pairwise(parts) if pair in ranks]:
        best = min(pairs, key=ranks.__getitem__)
        merged, i = [], 0
        while i < len(parts):
            is_best = tuple(parts[i : i + 2]) == best
            merged.append("".join(best) if is_best else parts[i])
            i += 2 if is_best else 1
        parts = merged
    return [*(f"{part}@@" for part in parts[:-1]), parts[-1].removesuffix("</w>")]


@pytest.fixture
def merges(tmp_path) -> list[tuple[str, str]]:
    (tmp_path / "codes").write_text(CODES, encoding="utf-8")
    return read_codes(tmp_path / "codes")


def test_words_are_split_as_subword_nmt_splits_them(merges):
    letters = [letter + end for letter in "lowernid" for end in ("", "@@")]
    results = ["lo@@", "low", "low@@", "er", "ne@@", "new@@", "newer", "wi@@", "wid@@", "lower"]
    vocabulary = [*FIRST, *letters, *results]
    tokenizer = subword_tokenizer(merges, vocabulary, SpecialTokens())
    for word in ("low", "lower", "newer", "new", "wider", "lowlow", "red", "l"):
        expected = [vocabulary.index(piece) for piece in segmented(word, merges)]
        assert tokenizer(f" {word} ")["input_ids"] == [*expected, 2], word
        assert tokenizer.decode([*expected, 2], skip_special_tokens=True) == word


def test_parts_of_tokens_are_appended_and_useless_merges_left_out(merges):
    vocabulary = [*FIRST, "newer", "l", "o@@", "l@@", "w"]
    tokenizer = subword_tokenizer(merges, vocabulary, SpecialTokens())
    assert {"ne@@", "new@@", "er"} <= set(vocabulary[9:])
    assert not {"lo@@", "low", "low@@", "wid@@"} & set(vocabulary)
    assert tokenizer("newer low")["input_ids"] == [4, 7, 6, 8, 2]


def test_codes_of_another_form_are_one_line(tmp_path):
    (tmp_path / "codes").write_text("#version: 0.1\na b\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"codes has version 0\.1"):
        read_codes(tmp_path / "codes")
    (tmp_path / "codes").write_text("one\n", encoding="utf-8")
    with pytest.raises(ValueError, match="is no file of BPE codes: line 1 is 'one', not two symbols"):
        read_codes(tmp_path / "codes")
    with pytest.raises(FileNotFoundError, match="do not exist"):
        read_codes(tmp_path / "nowhere")
