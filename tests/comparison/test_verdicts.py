# SPDX-License-Identifier: Apache-2.0
"""Verdicts follow the figures: they reverse when these are swapped, and claim nothing where ranges overlap."""

from collections.abc import Sequence
from typing import Any

import pytest

from tests.comparison.example_results import example_results
from vanilla_transformer.comparison.verdicts import TRANSFORMER, Finding, Verdict, verdicts


def verdict_on(**part: Any) -> Verdict:
    """The verdict on the only part that was measured."""
    (name,) = part
    return verdicts(dict.fromkeys(("speed", "long_range", "quality")) | part)[name]


def speed_findings(rows: list[dict[str, Any]]) -> Sequence[Finding]:
    return verdict_on(speed={"device": "cpu", "training": {"threads": 2}, "rows": rows}).findings


def long_range_verdict(tasks: list[dict[str, Any]], chance: float = 0.125) -> Verdict:
    by_task = {run["task"]: chance for run in tasks}
    return verdict_on(long_range={"tasks": tasks, "chance": by_task, "test_sequences": 10_000})


def quality_findings(tasks: list[dict[str, Any]]) -> Sequence[Finding]:
    return verdict_on(quality=tasks).findings


def speed_rows(length: int = 64, /, **speeds: list[float]) -> list[dict[str, Any]]:
    return [
        {"model": model, "length": length, "batch_size": 8, "threads": 2, "tokens_per_second": repeats}
        for model, repeats in speeds.items()
    ]


def runs(task: str = "copy", /, **accuracies: list[dict[str, float]]) -> list[dict[str, Any]]:
    """Runs trained at distance 8; a dict of accuracies by distance for each seed."""
    return [
        {"task": task, "model": model, "seed": seed, "trained_at": 8, "accuracy": accuracy}
        for model, seeds in accuracies.items()
        for seed, accuracy in enumerate(seeds)
    ]


def at_8(*seeds: float) -> list[dict[str, float]]:
    return [{"8": accuracy} for accuracy in seeds]


def quality(
    scores: dict[str, float], p_value: float, higher_is_better: bool = True, task: str = "translation"
) -> dict[str, Any]:
    models = {model: {"score": score, "interval": [score - 1, score + 1]} for model, score in scores.items()}
    paired = [
        {"model": m, "baseline": TRANSFORMER, "difference": score - scores[TRANSFORMER], "p_value": p_value}
        for m, score in scores.items()
        if m != TRANSFORMER
    ]
    return {
        "task": task,
        "metric": "BLEU" if higher_is_better else "word error rate",
        "higher_is_better": higher_is_better,
        "unit": "points" if higher_is_better else "%",
        "budgets": [{"budget": "equal time", "amount": "2 minutes", "models": models, "paired": paired}],
    }


def swapped(values: dict[str, Any]) -> dict[str, Any]:
    """The Transformer and its only rival with each other's figures."""
    first, second = values
    return {first: values[second], second: values[first]}


def test_speed_reverses_when_the_figures_are_swapped():
    speeds = {TRANSFORMER: [200.0, 220.0, 210.0], "GRU": [100.0, 100.0, 100.0]}
    (finding,) = speed_findings(speed_rows(**speeds))
    assert (finding.outcome, finding.rival) == ("ahead", "GRU")
    assert "2.10 (2.00 to 2.20)" in finding.evidence
    (finding,) = speed_findings(speed_rows(**swapped(speeds)))
    assert finding.outcome == "behind"
    assert f"{100 / 210:.2f} ({100 / 220:.2f} to {100 / 200:.2f})" in finding.evidence


def test_speed_pairs_repeats_by_their_index():
    # The machine slowed down by half: the ranges overlap, but in each pair the Transformer was faster.
    (finding,) = speed_findings(speed_rows(**{TRANSFORMER: [220.0, 110.0], "GRU": [200.0, 100.0]}))
    assert finding.outcome == "ahead"
    (finding,) = speed_findings(speed_rows(**{TRANSFORMER: [220.0, 110.0], "GRU": [100.0, 200.0]}))
    assert finding.outcome == "even"


def test_speed_compares_with_the_fastest_rival_at_each_length():
    rows = speed_rows(16, Transformer=[1.0], GRU=[3.0], LSTM=[2.0]) + speed_rows(
        8, Transformer=[9.0], GRU=[2.0], LSTM=[4.0]
    )
    short, long = speed_findings(rows)
    assert (short.where, short.rival, short.outcome) == ("length 8", "LSTM", "ahead")
    assert (long.where, long.rival, long.outcome) == ("length 16", "GRU", "behind")


def test_speed_with_unequal_numbers_of_repeats_is_refused():
    with pytest.raises(ValueError, match="zip"):
        speed_findings(speed_rows(Transformer=[1.0, 2.0], GRU=[1.0]))


def test_the_answer_counts_the_outcomes():
    def answer(*transformer: float) -> str:
        rows = [row for n, speed in enumerate(transformer, 1) for row in speed_rows(n, Transformer=[speed], GRU=[10.0])]
        return verdict_on(speed={"device": "cuda", "training": {}, "rows": rows}).sentences[0]

    assert answer(20, 30) == "Faster in training: yes on cuda: ahead in 2 of 2 comparisons."
    assert (
        answer(20, 5, 10)
        == "Faster in training: in part on cuda: ahead in 1, behind in 1 and even in 1 of 3 comparisons."
    )
    assert answer(5, 6) == "Faster in training: not on cuda: behind in 2 of 2 comparisons."


def test_long_range_reverses_when_the_figures_are_swapped():
    accuracies = {TRANSFORMER: at_8(0.9, 0.95), "LSTM": at_8(0.6, 0.7)}
    (finding,) = long_range_verdict(runs(**accuracies)).findings
    assert finding.outcome == "ahead"
    assert "92.5% (90.0 to 95.0) against 65.0% (60.0 to 70.0) of LSTM" in finding.evidence
    (finding,) = long_range_verdict(runs(**swapped(accuracies))).findings
    assert finding.outcome == "behind"


@pytest.mark.parametrize("rival", [(0.7, 0.9), (0.95, 0.97), (0.5, 1.0)])
def test_long_range_is_even_where_ranges_touch_or_overlap(rival: tuple[float, float]):
    (finding,) = long_range_verdict(runs(Transformer=at_8(0.9, 0.95), LSTM=at_8(*rival))).findings
    assert finding.outcome == "even"


def test_beyond_training_the_accuracy_of_a_seed_is_its_mean_over_longer_distances():
    accuracies = {
        TRANSFORMER: [{"4": 0.0, "8": 0.5, "16": 1.0, "32": 0.4}],  # 0.7
        "LSTM": [{"4": 1.0, "8": 0.6, "16": 0.6, "32": 0.6}],  # 0.6
    }
    at_training, beyond = long_range_verdict(runs(**accuracies)).findings
    assert (at_training.outcome, beyond.outcome) == ("behind", "ahead")
    assert "70.0%" in beyond.evidence
    assert "at 16 and 32 symbols" in beyond.where


def test_neither_is_ahead_at_chance_accuracy():
    parity = runs("parity", Transformer=at_8(0.50, 0.53), LSTM=at_8(0.47, 0.49))
    (finding,) = long_range_verdict(parity, chance=0.0).findings
    assert finding.outcome == "ahead"
    (finding,) = long_range_verdict(parity, chance=0.5).findings
    assert finding.outcome == "even"
    assert "guessing at 50.0%" in finding.evidence


def test_a_rival_can_be_ahead_at_parity():
    tasks = runs("parity", Transformer=at_8(0.5, 0.52), LSTM=at_8(1.0, 0.99), GRU=at_8(0.9, 0.9))
    answer, evidence, _ = long_range_verdict(tasks, chance=0.5).sentences
    assert "not on these tasks" in answer
    assert "A rival ahead: parity (state tracking) at 8 bits" in evidence
    assert "of LSTM" in evidence


@pytest.mark.parametrize("higher_is_better", [True, False])
def test_quality_reverses_when_the_figures_are_swapped(higher_is_better: bool):
    scores = {TRANSFORMER: 32.0, "GRU": 30.0}
    outcomes = [quality_findings([quality(s, 0.01, higher_is_better)])[0].outcome for s in (scores, swapped(scores))]
    assert outcomes == (["ahead", "behind"] if higher_is_better else ["behind", "ahead"])


def test_quality_compares_with_the_best_rival():
    scores = {TRANSFORMER: 31.0, "GRU": 30.0, "LSTM": 33.0}
    (bleu,) = quality_findings([quality(scores, 0.01)])
    assert (bleu.rival, bleu.outcome) == ("LSTM", "behind")
    assert "2.0 points worse than LSTM, p = 0.010" in bleu.evidence
    (errors,) = quality_findings([quality(scores, 0.01, higher_is_better=False)])
    assert (errors.rival, errors.outcome) == ("GRU", "behind")
    assert "1.0 points worse than GRU" in errors.evidence


@pytest.mark.parametrize(("p_value", "outcome"), [(0.049, "ahead"), (0.05, "even"), (0.6, "even")])
def test_quality_needs_significance(p_value: float, outcome: str):
    (finding,) = quality_findings([quality({TRANSFORMER: 32.0, "GRU": 30.0}, p_value)])
    assert finding.outcome == outcome


def test_worse_quality_is_not_superior():
    verdict = verdict_on(quality=[quality({TRANSFORMER: 28.0, "GRU": 30.0}, 0.001)])
    assert verdict.sentences[0].startswith("Superior quality: not on this task")


def test_missing_parts_are_not_measured():
    judged = verdicts(dict.fromkeys(("speed", "long_range", "quality"))).values()
    assert [sentence.partition(": ")[2] for verdict in judged for sentence in verdict.sentences] == [
        "not measured."
    ] * 3


def test_a_transformer_without_rivals_is_not_compared():
    alone = {"device": "cpu", "training": {}, "rows": speed_rows(Transformer=[1.0])}
    assert verdict_on(speed=alone).sentences[0].endswith("measured.")
    assert long_range_verdict(runs(Transformer=at_8(0.9))).findings == []


def test_each_sentence_is_one_line():
    judged = verdicts(example_results()).values()
    assert len(judged) == 3
    assert not [sentence for verdict in judged for sentence in verdict.sentences if "\n" in sentence]
