# SPDX-License-Identifier: Apache-2.0
"""Scores of given targets against n-best lists, one forward pass, and themselves in other batches."""

import random
from pathlib import Path

import pytest
import torch

from tests.families import END, FAMILIES, START, Family
from vanilla_transformer import Translator
from vanilla_transformer.data.tokenizer import TokenizerConfig, train_tokenizer
from vanilla_transformer.generation import length_penalty
from vanilla_transformer.inference.model_folder import load_model_folder

SYMBOLS = [f"w{i}" for i in range(27)]
# Padding, start and unknown word are no words: a text with them has other tokens than the model wrote.
WORDS_ALONE = {"suppress_tokens": [0, 1, 3]}


def write_folder(folder: Path, family: Family, symbols: list[str] = SYMBOLS, **settings) -> Path:
    model = family.model(pad_token_id=0, bos_token_id=START, eos_token_id=END, decoder_start_token_id=START)
    model.generation_config.update(num_beams=3, max_tokens_beyond_source=9, **WORDS_ALONE, **settings)
    model.save_pretrained(folder)
    train_tokenizer([" ".join(symbols)], TokenizerConfig(kind="symbols")).save_pretrained(folder)
    return folder


@pytest.fixture(params=[FAMILIES[0], FAMILIES[2], FAMILIES[4]], ids=lambda family: family.name)
def folder(request, tmp_path) -> Path:
    return write_folder(tmp_path / "model", request.param)


@pytest.fixture
def lines() -> list[str]:
    return [" ".join(random.choices(SYMBOLS, k=length)) for length in random.sample(range(1, 15), k=8)]


def ended(translator: Translator, lines: list[str], **options):
    """(source, translation) of n-best lists, without translations that the longest length has cut off."""
    for line, best in zip(lines, translator.n_best(lines, 3, log_probs=True, **options), strict=True):
        yield from ((line, translation) for translation in best if translation.tokens[-1] == "</s>")


@pytest.mark.parametrize("engine", ["auto", "torch"])
@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_scores_equal_those_of_n_best_lists(folder, lines, engine, precision):
    translator = Translator.from_pretrained(folder, precision, "cpu", engine)
    for alpha in (None, 0.0):
        rows = list(ended(translator, lines, alpha=alpha))
        assert len(rows) > len(lines)
        found = list(translator.score([(line, best.text) for line, best in rows], alpha=alpha, max_batch_tokens=100))
        for (_, best), again in zip(rows, found, strict=True):
            assert again.tokens == best.tokens
            assert again.score == pytest.approx(best.score, abs=1e-5)
            assert again.log_probs == pytest.approx(best.log_probs, abs=1e-5)


@torch.no_grad()
def test_scores_equal_one_forward_pass(folder, lines):
    translator, model = Translator.from_pretrained(folder, device="cpu"), load_model_folder(folder)
    targets = random.sample(lines, k=len(lines))
    found = translator.score(list(zip(lines, targets, strict=True)), alpha=0.8, best_log_probs=True)
    for source, target, scored in zip(lines, targets, found, strict=True):
        ids = translator.tokenizer(target, return_tensors="pt")["input_ids"]
        start = torch.full((1, 1), START)
        inputs = translator.tokenizer(source, return_tensors="pt")
        logits = model(**inputs, decoder_input_ids=torch.cat([start, ids[:, :-1]], dim=1)).logits[0]
        logits[:, WORDS_ALONE["suppress_tokens"]] = -torch.inf
        whole = model(**inputs, decoder_input_ids=torch.cat([start, ids[:, :-1]], dim=1)).logits[0].logsumexp(dim=-1)
        expected = logits.gather(1, ids[0, :, None])[:, 0] - whole
        assert scored.log_probs == pytest.approx(expected.tolist(), abs=1e-5)
        assert scored.best_log_probs == pytest.approx((logits.amax(dim=1) - whole).tolist(), abs=1e-5)
        assert scored.score == pytest.approx(float(expected.sum()) / length_penalty(ids.shape[1], 0.8), abs=1e-5)


def test_batch_invariance_of_scores(folder, lines):
    translator = Translator.from_pretrained(folder, device="cpu")
    pairs = list(zip(lines, reversed(lines), strict=True))
    expected = [next(translator.score([pair])) for pair in pairs]
    order = random.sample(range(len(pairs)), k=len(pairs))
    found = list(translator.score([pairs[i] for i in order], max_batch_tokens=60, window=5))
    for i, scored in zip(order, found, strict=True):
        assert scored.text == expected[i].text
        assert scored.log_probs == pytest.approx(expected[i].log_probs, abs=1e-5)


def test_forced_tokens_of_the_target_have_log_probability_0(folder, lines):
    translator = Translator.from_pretrained(folder, device="cpu")
    translator.model.generation_config.forced_bos_token_id = 7
    rows = list(ended(translator, lines))
    found = translator.score([(line, best.text.removeprefix("w3 ")) for line, best in rows])
    for (_, best), again in zip(rows, found, strict=True):
        assert again.log_probs[0] == 0.0
        assert again.score == pytest.approx(best.score, abs=1e-5)


@pytest.mark.parametrize("sampled", [False, True])
def test_log_probs_of_greedy_translations_are_those_of_their_tokens(folder, lines, sampled):
    translator = Translator.from_pretrained(folder, device="cpu")
    best = [translation for [translation] in translator.n_best(lines, 1, num_beams=1, log_probs=True)]
    pairs = [(line, each.text) for line, each in zip(lines, best, strict=True) if each.tokens[-1] == "</s>"]
    scored = dict(zip(pairs, translator.score(pairs), strict=True))
    assert pairs
    for line, each in zip(lines, best, strict=True):
        if (line, each.text) in scored:
            assert each.log_probs == pytest.approx(scored[line, each.text].log_probs, abs=1e-5)


def test_an_empty_source_has_no_tokens_and_an_empty_target_its_end(folder):
    translator = Translator.from_pretrained(folder, device="cpu")
    nothing, end = translator.score([(" ", ""), ("w1", "")])
    assert (nothing.score, nothing.tokens, nothing.log_probs) == (0.0, (), ())
    assert end.tokens == ("</s>",)


@pytest.mark.parametrize(
    ("pairs", "options", "said"),
    [
        ([("w1", "w2"), ("", "w2")], {}, "line 2 has a target, but its source is empty"),
        ([("w1", "w2 w2 w2")], {"max_length": 3}, "the target of line 1 has 4 tokens, more than the limit of 3"),
        ([("w1 w1 w1", "w2")], {"max_length": 3}, "line 1 has 4 tokens, more than the limit of 3"),
        ([("w1", "w2")], {"max_batch_tokens": 0}, "max_batch_tokens=0 must be at least 1"),
        ([("w1", "w2")], {"window": 0}, "window=0 must be at least 1 pair"),
    ],
)
def test_bad_pairs_are_refused_by_number(folder, pairs, options, said: str):
    with pytest.raises(ValueError, match=said):
        list(Translator.from_pretrained(folder, device="cpu").score(pairs, **options))


def test_ensemble_of_folders_scores_its_own_translations(tmp_path, lines):
    folders = [write_folder(tmp_path / family.name, family) for family in (FAMILIES[0], FAMILIES[1])]
    translator = Translator.ensemble(folders, device="cpu", weights=[2, 1])
    rows = list(ended(translator, lines))
    found = translator.score([(line, best.text) for line, best in rows], max_batch_tokens=50)
    assert [again.score for again in found] == pytest.approx([best.score for _, best in rows], abs=1e-5)


def test_ensemble_of_one_folder_is_its_translator(folder, lines):
    expected = list(Translator.from_pretrained(folder, device="cpu").n_best(lines, 3))
    assert list(Translator.ensemble([folder], device="cpu").n_best(lines, 3)) == expected


def test_ensemble_of_other_words_is_refused(tmp_path):
    folders = [write_folder(tmp_path / "a", FAMILIES[0])]
    folders.append(write_folder(tmp_path / "b", FAMILIES[0], symbols=[f"v{i}" for i in range(27)]))
    with pytest.raises(ValueError, match="b has another vocabulary than .*a: members of an ensemble share one"):
        Translator.ensemble(folders, device="cpu")
