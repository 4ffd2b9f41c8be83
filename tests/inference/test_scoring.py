# SPDX-License-Identifier: Apache-2.0
"""Scores of given targets against n-best lists, one forward pass, and themselves in other batches."""

import random
from pathlib import Path

import pytest
import torch

from tests.families import END, FAMILIES, START, Family
from vanilla_transformer import Translator
from vanilla_transformer.data.tokenizer import TokenizerConfig, train_tokenizer
from vanilla_transformer.ensemble import EnsembleDecoder
from vanilla_transformer.generation import length_penalty
from vanilla_transformer.inference.native.engine import Engine, fast_decoder
from vanilla_transformer.inference.translate import Translation
from vanilla_transformer.packed_linear import Precision

SYMBOLS = [f"w{i}" for i in range(27)]  # with the 4 special tokens, the vocabulary of a tiny model
SPECIAL = {"pad_token_id": 0, "bos_token_id": START, "eos_token_id": END, "decoder_start_token_id": START}


def new_tokenizer(symbols: list[str] = SYMBOLS):
    return train_tokenizer([" ".join(symbols)], TokenizerConfig(kind="symbols"))


def new_translator(family: Family, precision: Precision = "float32", engine: Engine = "auto") -> Translator:
    """Random weights, and a bias by which targets end, and have words alone: others would read as other tokens."""
    model = family.model(**SPECIAL)
    bias = torch.zeros(len(SYMBOLS) + 4)
    bias[END] = 4.0
    bias[[0, 1, 3]] = -30.0
    model.lm_head.bias = torch.nn.Parameter(bias)
    model.generation_config.update(num_beams=3, max_tokens_beyond_source=9)
    return Translator(model, new_tokenizer(), fast_decoder(model, precision, engine))


def write_folder(folder: Path, family: Family, symbols: list[str] = SYMBOLS) -> Path:
    model = family.model(**SPECIAL)
    model.generation_config.update(num_beams=3, max_tokens_beyond_source=4)
    model.save_pretrained(folder)
    new_tokenizer(symbols).save_pretrained(folder)
    return folder


@pytest.fixture(params=[FAMILIES[0], FAMILIES[2], FAMILIES[4]], ids=lambda family: family.name)
def family(request) -> Family:
    return request.param


@pytest.fixture
def translator(family) -> Translator:
    return new_translator(family)


@pytest.fixture
def lines() -> list[str]:
    return [" ".join(random.choices(SYMBOLS, k=length)) for length in random.sample(range(1, 15), k=8)]


def ended(translator: Translator, lines: list[str], **options) -> list[tuple[str, Translation]]:
    """(source, translation) of n-best lists, without translations that the longest length has cut off."""
    rows = []
    for line, best in zip(lines, translator.n_best(lines, 3, log_probs=True, **options), strict=True):
        rows += [(line, translation) for translation in best if translation.tokens[-1] == "</s>"]
    assert len(rows) > len(lines)
    return rows


@pytest.mark.parametrize("engine", ["auto", "torch"])
@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_scores_equal_those_of_n_best_lists(family, lines, engine, precision):
    translator = new_translator(family, precision, engine)
    for alpha in (None, 0.0):
        rows = ended(translator, lines, alpha=alpha)
        found = list(translator.score([(line, best.text) for line, best in rows], alpha=alpha, max_batch_tokens=100))
        for (_, best), again in zip(rows, found, strict=True):
            assert again.tokens == best.tokens
            assert again.score == pytest.approx(best.score, abs=1e-5)
            assert again.log_probs == pytest.approx(best.log_probs, abs=1e-5)


@torch.no_grad()
def test_scores_equal_one_forward_pass(translator, lines):
    targets = random.sample(lines, k=len(lines))
    found = translator.score(zip(lines, targets, strict=True), alpha=0.8, best_log_probs=True)
    for source, target, scored in zip(lines, targets, found, strict=True):
        inputs = translator.tokenizer(source, text_target=target, return_tensors="pt")
        log_probs = translator.model(**inputs).logits[0].log_softmax(dim=-1)
        expected = log_probs.gather(1, inputs["labels"].T)[:, 0]
        assert scored.log_probs == pytest.approx(expected.tolist(), abs=1e-5)
        assert scored.best_log_probs == pytest.approx(log_probs.amax(dim=1).tolist(), abs=1e-5)
        assert scored.score == pytest.approx(float(expected.sum()) / length_penalty(len(expected), 0.8), abs=1e-5)


def test_batch_invariance_of_scores(translator, lines):
    pairs = list(zip(lines, reversed(lines), strict=True))
    expected = [next(translator.score([pair])) for pair in pairs]
    order = random.sample(range(len(pairs)), k=len(pairs))
    found = list(translator.score([pairs[i] for i in order], max_batch_tokens=60, window=5))
    for i, scored in zip(order, found, strict=True):
        assert scored.text == expected[i].text
        assert scored.log_probs == pytest.approx(expected[i].log_probs, abs=1e-5)


def test_forced_tokens_of_the_target_have_log_probability_0(translator, lines):
    translator.model.generation_config.forced_bos_token_id = translator.tokenizer.convert_tokens_to_ids("w3")
    rows = ended(translator, lines)
    found = translator.score([(line, best.text.removeprefix("w3").lstrip()) for line, best in rows])
    for (_, best), again in zip(rows, found, strict=True):
        assert again.tokens == best.tokens
        assert again.log_probs[0] == 0.0
        assert again.score == pytest.approx(best.score, abs=1e-5)


def test_log_probs_of_greedy_translations_are_those_of_their_tokens(translator, lines):
    best = [translation for [translation] in translator.n_best(lines, 1, num_beams=1, log_probs=True)]
    rows = [(line, each) for line, each in zip(lines, best, strict=True) if each.tokens[-1] == "</s>"]
    assert rows
    for (_, each), again in zip(rows, translator.score([(line, each.text) for line, each in rows]), strict=True):
        assert each.log_probs == pytest.approx(again.log_probs, abs=1e-5)


def test_an_empty_source_has_no_tokens_and_an_empty_target_its_end(translator):
    nothing, end = translator.score([(" ", ""), ("w1", "")])
    assert nothing == Translation("")
    assert end.tokens == ("</s>",)


@pytest.mark.parametrize(
    ("pairs", "options", "said"),
    [
        ([("w1", "w2"), ("", "w2")], {}, "line 2 has a target, but an empty source"),
        ([("w1", "w2 w2 w2")], {"max_length": 3}, "the target of line 1 has 4 tokens, more than the limit of 3"),
        ([("w1 w1 w1", "w2")], {"max_length": 3}, "line 1 has 4 tokens, more than the limit of 3"),
        ([("w1", "w2")], {"max_batch_tokens": 0}, "max_batch_tokens=0 must be at least 1"),
        ([("w1", "w2"), ("w1", None)], {}, "the target of line 2 must be a string, not NoneType"),
        ([("w1", "w2")], {"coverage_penalty": 0.2}, "targets are scored, not searched"),
        ([("w1", "w2")], {"window": 0}, "window=0 must be at least 1 pair"),
    ],
)
def test_bad_pairs_are_refused_by_number(translator, pairs, options, said: str):
    with pytest.raises(ValueError, match=said):
        list(translator.score(pairs, **options))


def test_ensemble_scores_its_own_translations(lines):
    members = [new_translator(family) for family in (FAMILIES[0], FAMILIES[1])]
    decoder = EnsembleDecoder([member.decoder for member in members], [2, 1])
    translator = Translator(members[0].model, members[0].tokenizer, decoder)
    rows = ended(translator, lines)
    found = translator.score([(line, best.text) for line, best in rows], max_batch_tokens=50)
    assert [again.score for again in found] == pytest.approx([best.score for _, best in rows], abs=1e-5)


def test_ensemble_of_folders_decodes_by_all(tmp_path, lines):
    folders = [write_folder(tmp_path / family.name, family) for family in (FAMILIES[0], FAMILIES[1])]
    members = [Translator.from_pretrained(folder, device="cpu") for folder in folders]
    decoder = EnsembleDecoder([member.decoder for member in members], [2, 1], "log_probabilities")
    expected = list(Translator(members[0].model, members[0].tokenizer, decoder).n_best(lines, 3))
    options = {"device": "cpu", "weights": [2, 1], "mean": "log_probabilities"}
    assert list(Translator.ensemble(folders, **options).n_best(lines, 3)) == expected


def test_batch_invariance_of_ensembles(lines):
    members = [new_translator(family) for family in (FAMILIES[0], FAMILIES[1])]
    decoder = EnsembleDecoder([member.decoder for member in members])
    translator = Translator(members[0].model, members[0].tokenizer, decoder)
    expected = [next(translator.n_best([line], 2)) for line in lines]
    for best, alone in zip(translator.n_best(lines, 2, max_batch_tokens=90), expected, strict=True):
        assert [each.text for each in best] == [each.text for each in alone]
        assert [each.score for each in best] == pytest.approx([each.score for each in alone], abs=1e-5)


def test_ensemble_of_one_folder_is_its_translator(family, tmp_path, lines):
    folder = write_folder(tmp_path, family)
    expected = list(Translator.from_pretrained(folder, device="cpu").n_best(lines, 3))
    assert list(Translator.ensemble([folder], device="cpu").n_best(lines, 3)) == expected


def test_ensemble_of_other_words_is_refused(tmp_path):
    folders = [write_folder(tmp_path / "a", FAMILIES[0])]
    folders.append(write_folder(tmp_path / "b", FAMILIES[0], symbols=[f"v{i}" for i in range(27)]))
    with pytest.raises(ValueError, match="b has another vocabulary than .*a: members of an ensemble share one"):
        Translator.ensemble(folders, device="cpu")
