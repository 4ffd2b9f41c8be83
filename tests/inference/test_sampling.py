# SPDX-License-Identifier: Apache-2.0
"""Samples follow the model's distribution, and depend on the seed and the line alone."""

import math

import numpy as np
import pytest
import torch
from transformers import GenerationConfig

from tests.families import END, FAMILIES, START
from tests.test_decoder import ENGINES, marian
from vanilla_transformer.data.tokenizer import TokenizerConfig, train_tokenizer
from vanilla_transformer.generation import length_penalty
from vanilla_transformer.inference.sampling import GumbelSampler, Sampling, gumbel_noise
from vanilla_transformer.inference.translate import Translation, translate_lines

WORDS = [f"w{i}" for i in range(27)]  # with the 4 special tokens, the vocabulary of a tiny model
LINES = [" ".join(WORDS[i % 20 : i % 20 + 1 + i % 7]) for i in range(70)]
TOKENIZER = train_tokenizer([" ".join(WORDS)], TokenizerConfig(kind="symbols"))
SUPPRESSED = [0, START, 3]
SPECIAL = {"pad_token_id": 0, "bos_token_id": START, "eos_token_id": END, "decoder_start_token_id": START}


def model_of(family: int):
    """A model whose targets have no other special token than the end, so that a text has all its tokens."""
    model = FAMILIES[family].model(**SPECIAL)
    model.generation_config.update(suppress_tokens=SUPPRESSED)
    return model


def sample(model, lines, sampling: Sampling, *, numbers=None, batch_tokens=8192, number=0, **options):
    """A sample of each line; `numbers` are those of the lines in the user's file."""
    numbers = range(1, len(lines) + 1) if numbers is None else numbers
    found = translate_lines(
        model,
        TOKENIZER,
        lines,
        max_batch_tokens=batch_tokens,
        num_beams=1,
        new_sampler=lambda places: GumbelSampler(sampling, [(numbers[place], number) for place in places]),
        **{"max_new_tokens": 8} | options,
    )
    return [translation for [translation] in found]


def assert_follows(counts: torch.Tensor, probabilities: torch.Tensor) -> None:
    """Pearson's chi-square test; its quantile by Wilson and Hilferty (1931), for 5 standard deviations."""
    expected = probabilities * counts.sum()
    assert counts[expected == 0].sum() == 0
    is_common = expected >= 5
    observed = torch.cat([counts[is_common], counts[~is_common].sum()[None]])
    expected = torch.cat([expected[is_common], expected[~is_common].sum()[None]])
    statistic = ((observed - expected) ** 2 / expected.clamp(min=1e-9))[expected > 0].sum().item()
    df = int((expected > 0).sum()) - 1
    assert statistic < df * (1 - 2 / (9 * df) + 5 * math.sqrt(2 / (9 * df))) ** 3


def test_noise_has_the_moments_of_gumbels_distribution():
    noise = np.concatenate([gumbel_noise(3, line, 0, 1, 1000) for line in range(200)])
    assert np.isfinite(noise).all()
    assert noise.mean() == pytest.approx(np.euler_gamma, abs=0.02)  # 7 standard errors
    assert noise.var() == pytest.approx(math.pi**2 / 6, abs=0.05)


def test_noise_is_another_for_every_seed_line_sample_and_step():
    arrays = [gumbel_noise(*key, 100) for key in np.ndindex(3, 3, 3, 3)]
    assert len({array.tobytes() for array in arrays}) == 81
    assert np.abs(np.corrcoef(arrays)[np.triu_indices(81, 1)]).max() < 0.5  # 5 standard errors


def test_noise_of_a_token_does_not_depend_on_the_size_of_the_vocabulary():
    assert np.array_equal(gumbel_noise(1, 2, 3, 4, 77), gumbel_noise(1, 2, 3, 4, 1000)[:77])


@pytest.mark.parametrize(
    "options", [{}, {"temperature": 0.5}, {"temperature": 2.0, "top_k": 5}, {"top_p": 0.7}, {"top_k": 8, "top_p": 0.8}]
)
def test_first_tokens_follow_the_distribution_from_which_transformers_samples(options):
    model, line, draws = model_of(0), LINES[5], 1500
    own = {"do_sample": True, "max_new_tokens": 1, "output_scores": True, "return_dict_in_generate": True}
    theirs = model.generate(**TOKENIZER(line, return_tensors="pt"), **{"top_k": 0} | options, **own)
    found = sample(model, [line] * draws, Sampling(**options), max_new_tokens=1)
    ids = [TOKENIZER.convert_tokens_to_ids(translation.text) if translation.text else END for translation in found]
    assert_follows(torch.bincount(torch.tensor(ids), minlength=31), theirs.scores[0][0].softmax(dim=-1))


@pytest.mark.parametrize(
    ("engine", "family", "sizes"),
    [
        ("native", 0, (1, 7, 64)),
        ("build_decoder", 0, (1, 7, 16)),
        ("build_decoder", 2, (1, 7, 16)),
        ("model", 0, (1, 7, 16)),
    ],
)
def test_batch_invariance_of_samples(engine, family, sizes):
    model, lines = model_of(family), LINES[: sizes[-1] + 3]
    options = {"decoder": ENGINES[engine](model), "max_new_tokens": 5}
    sampling, longest = Sampling(temperature=0.8, top_p=0.95, seed=5), max(map(len, TOKENIZER(lines)["input_ids"]))
    found = [sample(model, lines, sampling, batch_tokens=size * longest, at_once=1, **options) for size in sizes]
    order = torch.randperm(len(lines)).tolist()
    shuffled = sample(model, [lines[i] for i in order], sampling, numbers=[i + 1 for i in order], **options)
    found.append([shuffled[order.index(i)] for i in range(len(lines))])
    assert len({translation.text for translation in found[0]}) > 0.8 * len(lines)
    for others in found[1:]:
        assert others == [Translation(each.text, pytest.approx(each.score, abs=1e-4)) for each in found[0]]


def test_equal_lines_and_further_samples_get_draws_of_their_own():
    model = model_of(0)
    first, second = (sample(model, [LINES[6]] * 30, Sampling(), number=number) for number in (0, 1))
    assert len({translation.text for translation in first + second}) > 50


def marian_model():
    model = marian()
    model.generation_config = GenerationConfig(**SPECIAL, suppress_tokens=SUPPRESSED)
    return model


@pytest.mark.parametrize(
    "make", [lambda: model_of(0), lambda: model_of(2), marian_model], ids=["ours", "rnn", "marian"]
)
@torch.no_grad()
def test_scores_are_log_probabilities_over_the_length_penalty(make):
    """By one forward pass, whatever the temperature; targets end by EOS or at their maximum length."""
    model, longest, ends = make(), 5, set()
    found = sample(model, LINES, Sampling(temperature=0.7, top_k=9, alpha=1.0), max_new_tokens=longest)
    for line, translation in zip(LINES, found, strict=True):
        target = [*TOKENIZER.convert_tokens_to_ids(translation.text.split()), END][:longest]
        ends.add(target[-1] == END)
        prompt = torch.tensor([[START, *target[:-1]]])
        logits = model(**TOKENIZER(line, return_tensors="pt"), decoder_input_ids=prompt).logits[0]
        logits[:, SUPPRESSED] = -torch.inf
        log_probs = logits.log_softmax(dim=-1).gather(1, torch.tensor(target)[:, None])
        expected = log_probs.sum().item() / length_penalty(len(target), 1.0)
        assert translation.score == pytest.approx(expected, abs=1e-4)
    assert ends == {True, False}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"temperature": 0.0}, "temperature=0.0 must be greater than 0"),
        ({"temperature": math.inf}, "temperature=inf must be greater than 0, and finite"),
        ({"top_k": 0}, "top_k=0 must be at least 1 token"),
        ({"top_p": 1.5}, "top_p=1.5 must be greater than 0 and at most 1"),
        ({"seed": -1}, "seed=-1 must be at least 0"),
        ({"seed": 2**64}, "seed=18446744073709551616 must be .* at most 18446744073709551615"),
    ],
)
def test_values_out_of_range_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        Sampling(**options)


def test_sampling_needs_one_beam():
    with pytest.raises(ValueError, match="num_beams=2 must be 1 for sampling"):
        translate_lines(model_of(0), TOKENIZER, LINES, max_batch_tokens=99, num_beams=2, new_sampler=pytest.fail)
