# SPDX-License-Identifier: Apache-2.0
"""Verdicts follow the figures: they reverse when these are swapped, and claim nothing where intervals hold zero."""

import math
import re
from collections.abc import Sequence
from typing import Any

import pytest

from tests.comparison.example_results import example_results
from vanilla_transformer.comparison.verdicts import TRANSFORMER, Finding, Verdict, verdicts


def verdict_on(**part: Any) -> Verdict:
    """The only verdict on the only part that was measured."""
    (name,) = part
    (verdict,) = verdicts(dict.fromkeys(("speed", "long_range", "quality")) | part)[name]
    return verdict


def speed_findings(rows: list[dict[str, Any]]) -> Sequence[Finding]:
    return verdict_on(speed={"device": "cpu", "rows": rows}).findings


def long_range_verdict(tasks: list[dict[str, Any]], test_sequences: int = 10_000) -> Verdict:
    return verdict_on(long_range={"tasks": tasks, "test_sequences": test_sequences})


def quality_findings(tasks: list[dict[str, Any]]) -> Sequence[Finding]:
    return verdict_on(quality=tasks).findings


def speed_rows(length: int = 64, /, **speeds: list[float]) -> list[dict[str, Any]]:
    return [
        {"model": model, "length": length, "batch_size": 8, "tokens_per_second": repeats}
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
    scores: dict[str, float], standard_error: float, higher_is_better: bool = True, task: str = "translation"
) -> dict[str, Any]:
    paired = [
        {"model": m, "difference": score - scores[TRANSFORMER], "standard_error": standard_error}
        for m, score in scores.items()
        if m != TRANSFORMER
    ]
    return {
        "task": task,
        "higher_is_better": higher_is_better,
        "budgets": [{"budget": "equal time", "amount": "2 minutes", "paired": paired}],
    }


def outcomes(findings: Sequence[Finding]) -> list[str]:
    return [finding.outcome for finding in findings]


def interval(finding: Finding) -> list[float]:
    """The difference and its interval, as they are shown."""
    return [float(figure) for figure in re.findall(r"[-+]?[\d.]+", finding.difference)]


def swapped(values: dict[str, Any]) -> dict[str, Any]:
    """The Transformer and its only rival with each other's figures."""
    first, second = values
    return {first: values[second], second: values[first]}


def test_speed_reverses_when_the_figures_are_swapped():
    speeds = {TRANSFORMER: [200.0, 220.0, 210.0], "GRU": [100.0, 100.0, 100.0]}
    (finding,), (reverse,) = speed_findings(speed_rows(**speeds)), speed_findings(speed_rows(**swapped(speeds)))
    assert (finding.pair.rival, finding.outcome, reverse.outcome) == ("GRU", "ahead", "behind")
    mean, low, high = interval(finding)
    assert mean == pytest.approx((2 * 2.2 * 2.1) ** (1 / 3), abs=0.01)  # the geometric mean
    assert interval(reverse) == pytest.approx([1 / mean, 1 / high, 1 / low], abs=0.01)


def test_speed_pairs_repeats_by_their_index():
    # The machine slowed down by half: the ranges overlap, but in each pair the Transformer was faster.
    assert outcomes(speed_findings(speed_rows(**{TRANSFORMER: [220.0, 110.0], "GRU": [200.0, 100.0]}))) == ["ahead"]
    unpaired = {TRANSFORMER: [220.0, 110.0], "GRU": [100.0, 200.0]}
    assert outcomes(speed_findings(speed_rows(**unpaired))) == ["no clear difference"]


def test_speed_meets_every_rival_at_every_length_the_shortest_first():
    rows = speed_rows(16, Transformer=[1.0], GRU=[3.0], LSTM=[2.0]) + speed_rows(8, Transformer=[9.0], GRU=[2.0])
    pairs = [(finding.pair.setting, finding.pair.rival) for finding in speed_findings(rows)]
    assert pairs == [("length 8", "GRU"), ("length 16", "GRU"), ("length 16", "LSTM")]


def test_one_repeat_shows_no_clear_difference():
    (finding,) = speed_findings(speed_rows(Transformer=[9.0], GRU=[2.0]))
    assert (finding.outcome, finding.difference) == ("no clear difference", "4.50 (0.00 to inf)")


def test_each_precision_and_number_of_threads_has_its_own_verdict():
    def rows(threads: int, own: float) -> list[dict[str, Any]]:
        both = speed_rows(Transformer=[own] * 2, GRU=[10.0] * 2)
        return [row | {"precision": "float32", "threads": threads} for row in both]

    judged = verdicts(
        {"speed": {"device": "cpu", "rows": rows(1, 20) + rows(2, 5)}, "long_range": None, "quality": None}
    )
    assert [(verdict.scope, outcomes(verdict.findings)) for verdict in judged["speed"]] == [
        ("on cpu, float32, 1 thread", ["ahead"]),
        ("on cpu, float32, 2 threads", ["behind"]),
    ]


def test_one_sequence_at_a_time_is_a_setting_of_its_own():
    rows = speed_rows(Transformer=[9.0], GRU=[2.0])
    findings = speed_findings(rows + [row | {"batch_size": 1} for row in rows])
    assert [finding.pair.setting for finding in findings] == ["length 64", "length 64, one sequence"]


def test_speed_with_unequal_numbers_of_repeats_is_refused():
    with pytest.raises(ValueError, match="zip"):
        speed_findings(speed_rows(Transformer=[1.0, 2.0], GRU=[1.0]))


def test_the_headline_counts_pairs_and_names_the_strongest_rival():
    rows = [
        *speed_rows(8, Transformer=[20, 20], GRU=[10, 10], LSTM=[10, 10]),
        *speed_rows(9, Transformer=[20, 20], GRU=[10, 10], LSTM=[30, 30]),
        *speed_rows(10, Transformer=[20, 20], GRU=[20, 20], LSTM=[20, 20]),
    ]
    assert verdict_on(speed={"device": "cuda", "rows": rows}).sentences == [
        "Faster in training on cuda: ahead in 3 of 6 pairs (2 rivals x 3 lengths), behind in 1, "
        "no clear difference in 2; the strongest rival is LSTM."
    ]


def test_between_rivals_of_equal_wins_the_strongest_has_the_better_mean():
    rows = speed_rows(Transformer=[20, 20], GRU=[30, 30], LSTM=[40, 40], tanh=[10, 10])
    (headline,) = verdict_on(speed={"device": "cpu", "rows": rows}).sentences
    assert headline.endswith("the strongest rival is LSTM.")


@pytest.mark.parametrize("seed", range(5))
def test_the_counts_of_a_headline_and_of_its_groups_add_up(seed: int):
    def counts(sentence: str) -> list[int]:
        found = re.search(r"ahead in (\d+) of (\d+) pairs?.*behind in (\d+), no clear difference in (\d+);", sentence)
        assert found
        ahead, pairs, behind, unclear = map(int, found.groups())
        assert ahead + behind + unclear == pairs
        return [ahead, behind, unclear]

    verdict = verdict_on(long_range=example_results(seed)["long_range"])
    headline, *groups = map(counts, verdict.sentences)
    assert len(groups) == 3
    assert headline == [sum(column) for column in zip(*groups, strict=True)]
    assert headline == [outcomes(verdict.findings).count(o) for o in ("ahead", "behind", "no clear difference")]


def test_long_range_reverses_when_the_figures_are_swapped():
    accuracies = {TRANSFORMER: at_8(0.9, 0.92, 0.94), "LSTM": at_8(0.2, 0.22, 0.24)}
    (finding,) = long_range_verdict(runs(**accuracies)).findings
    (reverse,) = long_range_verdict(runs(**swapped(accuracies))).findings
    assert (finding.outcome, reverse.outcome) == ("ahead", "behind")
    mean, low, high = interval(finding)
    assert mean == pytest.approx(70)
    assert interval(reverse) == pytest.approx([-mean, -high, -low])


def test_long_range_is_unclear_where_seeds_disagree():
    (finding,) = long_range_verdict(runs(Transformer=at_8(1.0, 0.2, 1.0), LSTM=at_8(0.2, 0.2, 0.2))).findings
    assert finding.outcome == "no clear difference"


def test_sampling_of_the_test_sequences_is_part_of_the_interval():
    accuracies = runs(Transformer=at_8(0.5, 0.5), LSTM=at_8(0.46, 0.46))  # the seeds agree
    findings = {count: long_range_verdict(accuracies, count).findings[0] for count in (100, 10_000)}
    assert {count: finding.outcome for count, finding in findings.items()} == {
        100: "no clear difference",
        10_000: "ahead",
    }
    mean, low, _ = interval(findings[100])
    assert mean - low == pytest.approx(196 * math.sqrt((0.5 * 0.5 + 0.46 * 0.54) / 100), rel=0.01)


def test_shorter_and_longer_sequences_are_settings_and_their_accuracy_is_the_mean_over_distances():
    accuracies = {
        TRANSFORMER: [{"4": 0.0, "8": 0.5, "16": 1.0, "32": 0.4}] * 2,  # longer: 0.7
        "LSTM": [{"4": 1.0, "8": 0.5, "16": 0.6, "32": 0.6}] * 2,
    }
    findings = {finding.pair.setting: finding for finding in long_range_verdict(runs(**accuracies)).findings}
    assert {setting: finding.outcome for setting, finding in findings.items()} == {
        "shorter": "behind",
        "as trained": "no clear difference",
        "longer": "ahead",
    }
    assert interval(findings["longer"])[0] == pytest.approx(10)


def test_a_rival_can_be_ahead_at_parity():
    tasks = runs("parity", Transformer=at_8(0.5, 0.51), LSTM=at_8(1.0, 0.99), GRU=at_8(0.9, 0.9))
    verdict = long_range_verdict(tasks)
    assert outcomes(verdict.findings) == ["behind", "behind"]
    assert verdict.sentences[0].startswith("Better at long range on these tasks: ahead in 0 of 2 pairs")


@pytest.mark.parametrize("higher_is_better", [True, False])
def test_quality_reverses_when_the_figures_are_swapped(higher_is_better: bool):
    scores = {TRANSFORMER: 32.0, "GRU": 30.0}
    found = [quality_findings([quality(s, 0.1, higher_is_better)])[0] for s in (scores, swapped(scores))]
    assert outcomes(found) == (["ahead", "behind"] if higher_is_better else ["behind", "ahead"])
    assert [interval(finding)[0] for finding in found] == ([2, -2] if higher_is_better else [-2, 2])


def test_quality_is_corrected_for_the_number_of_pairs():
    scores = {TRANSFORMER: 32.0, "GRU": 30.0}  # the difference is 2.2 standard errors: p = 0.03
    assert outcomes(quality_findings([quality(scores, 2 / 2.2)])) == ["ahead"]
    tasks = [quality(scores, 2 / 2.2, task=task) for task in ("translation", "pronunciation")]
    assert outcomes(quality_findings(tasks)) == ["no clear difference"] * 2
    tasks = [quality(scores, 2 / 2.4, task=task) for task in ("translation", "pronunciation")]  # p = 0.016
    assert outcomes(quality_findings(tasks)) == ["ahead"] * 2


def test_missing_parts_are_not_measured():
    judged = [
        verdict for part in verdicts(dict.fromkeys(("speed", "long_range", "quality"))).values() for verdict in part
    ]
    said = [sentence.partition(": ")[2] for verdict in judged for sentence in verdict.sentences]
    assert said == ["not measured."] * 3


def test_a_transformer_without_rivals_is_not_compared():
    assert verdict_on(speed={"device": "cpu", "rows": speed_rows(Transformer=[1.0])}).sentences[0].endswith("measured.")
    assert long_range_verdict(runs(Transformer=at_8(0.9))).findings == []


def test_each_sentence_is_one_line():
    judged = [verdict for part in verdicts(example_results()).values() for verdict in part]
    assert len(judged) >= 3
    assert not [sentence for verdict in judged for sentence in verdict.sentences if "\n" in sentence]
