# SPDX-License-Identifier: Apache-2.0
"""Is the Transformer faster, better at long range, of superior quality? Verdicts computed from the results.

The Transformer meets every rival in every setting. It is ahead or behind in such a pair if the interval of the
difference leaves no difference out; the intervals of a verdict are corrected for the number of its pairs.
`vanilla_transformer.comparison.report` documents the schema of the results.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

from vanilla_transformer.comparison.fairness import TRANSFORMER
from vanilla_transformer.comparison.intervals import (
    Difference,
    difference_of_means,
    paired_difference,
    simultaneous_intervals,
)
from vanilla_transformer.comparison.markdown import plural, with_range
from vanilla_transformer.visualization.comparison import TASK_TITLES

AHEAD, BEHIND, UNCLEAR = "ahead", "behind", "no clear difference"
MAX_RATIO = 1000  # larger ends of an interval are infinite: they say nothing


@dataclass(frozen=True)
class Pair:
    """The Transformer and one rival in one setting of a group."""

    group: str  # such as the task
    rival: str
    setting: str  # such as "length 128"


@dataclass(frozen=True)
class Finding:
    """The outcome of a pair, and the difference with its simultaneous interval.

    Args:
        lead: the difference as a number that is positive if the Transformer is better.
    """

    pair: Pair
    outcome: str
    difference: str
    lead: float


@dataclass(frozen=True)
class Verdict:
    """One claim of the paper, with a finding for each pair.

    Args:
        scope: such as "on cpu".
        setting: the noun, such as "length".
        note: how the differences and their intervals were computed.
    """

    claim: str
    findings: Sequence[Finding] = ()
    scope: str = ""
    setting: str = "setting"
    note: str = ""

    @property
    def sentences(self) -> list[str]:
        """The headline, which counts all pairs, and the same of each group if there are several."""
        if not self.findings:
            return [f"{self.claim}: not measured."]
        groups: dict[str, list[Finding]] = {}
        for finding in self.findings:
            groups.setdefault(finding.pair.group, []).append(finding)
        headline = f"{self.claim} {self.scope}: {self._count(self.findings)}"
        if len(groups) == 1:
            return [headline]
        return [headline, *(f"{group}: {self._count(found)}" for group, found in groups.items())]

    def _count(self, findings: Sequence[Finding]) -> str:
        """Such as "ahead in 3 of 6 pairs (2 rivals x 3 lengths), behind in 2, no clear difference in 1; …"."""
        rivals = list(dict.fromkeys(finding.pair.rival for finding in findings))
        settings = {(finding.pair.group, finding.pair.setting) for finding in findings}
        grid = f" ({plural(len(rivals), 'rival')} x {plural(len(settings), self.setting)})"
        counts = count_outcomes(findings)
        strongest = max(rivals, key=lambda rival: _strength([f for f in findings if f.pair.rival == rival]))
        named = f"the {'strongest ' * (len(rivals) > 1)}rival is {strongest}"
        return (
            f"{AHEAD} in {counts[AHEAD]} of {plural(len(findings), 'pair')}"
            f"{grid if len(rivals) * len(settings) == len(findings) else ''}, {BEHIND} in {counts[BEHIND]}, "
            f"{UNCLEAR} in {counts[UNCLEAR]}; {named}."
        )


def count_outcomes(findings: Iterable[Finding]) -> dict[str, int]:
    """Outcome → number of findings."""
    outcomes = [finding.outcome for finding in findings]
    return {outcome: outcomes.count(outcome) for outcome in (AHEAD, BEHIND, UNCLEAR)}


def _strength(findings: Sequence[Finding]) -> tuple[int, float]:
    """By which the strongest rival is chosen: its clear wins less its clear losses, then its mean lead."""
    counts = count_outcomes(findings)
    return counts[BEHIND] - counts[AHEAD], -mean(finding.lead for finding in findings)


def verdicts(results: Mapping[str, Any]) -> dict[str, list[Verdict]]:
    """The verdicts on each part of the results, in the order of the report."""
    claims = {
        "speed": ("Faster in training", _judge_speed),
        "long_range": ("Better at long range", _judge_long_range),
        "quality": ("Superior quality", _judge_quality),
    }
    return {
        part: judge(claim, results[part]) if results[part] else [Verdict(claim)]
        for part, (claim, judge) in claims.items()
    }


def _judge_speed(claim: str, speed: Mapping[str, Any]) -> list[Verdict]:
    """A verdict for each precision and number of threads. A setting is a length, the shortest first.

    Repeats are paired by their index: the models were interleaved, so that a slow moment of the machine affects both.
    """
    conditions: dict[tuple[Any, Any], list[Mapping[str, Any]]] = {}
    for row in sorted(speed["rows"], key=lambda row: (row["length"], -row["batch_size"])):
        conditions.setdefault((row.get("precision"), row.get("threads")), []).append(row)
    judged = []
    for (precision, threads), rows in conditions.items():
        by_setting: dict[str, dict[str, list[float]]] = {}
        for row in rows:
            setting = f"length {row['length']:,}{', one sequence' * (row['batch_size'] == 1)}"
            by_setting.setdefault(setting, {})[row["model"]] = row["tokens_per_second"]
        differences = {}
        for setting, repeats in by_setting.items():
            for rival in (model for model in repeats if model != TRANSFORMER):
                pairs = zip(repeats[TRANSFORMER], repeats[rival], strict=True)
                ratios = [math.log(own / other) for own, other in pairs]
                differences[Pair("", rival, setting)] = paired_difference(ratios)
        scope = [
            speed["device"],
            *([precision] if precision else []),
            *([plural(threads, "thread")] if threads else []),
        ]
        note = (
            "The Transformer's tokens/s divided by the rival's: the geometric mean of "
            f"{plural(len(rows[0]['tokens_per_second']), 'paired repeat')}, and Student's t interval of its logarithm."
        )
        judged.append(Verdict(claim, _findings(differences, _ratio), f"on {', '.join(scope)}", "length", note))
    return judged


def _judge_long_range(claim: str, long_range: Mapping[str, Any]) -> list[Verdict]:
    """One verdict, whose groups are the tasks: each at shorter distances, as trained, and at longer distances.

    Shorter and longer, the accuracy of a seed is its mean over all those distances. The extreme ones alone would show
    nothing where every model guesses, and a distance in between would be chosen knowing the outcome.

    The seeds are a sample of each model. All of them met the same test sequences, whose sampling adds to the variance
    of each mean p at most p (1 - p) / sequences.
    """
    differences, runs = {}, long_range["tasks"]
    for task in dict.fromkeys(run["task"] for run in runs):
        task_runs = [run for run in runs if run["task"] == task]
        trained_at, tested = task_runs[0]["trained_at"], sorted(map(int, task_runs[0]["accuracy"]))
        settings = {
            "shorter": [distance for distance in tested if distance < trained_at],
            "as trained": [distance for distance in tested if distance == trained_at],
            "longer": [distance for distance in tested if distance > trained_at],
        }
        for setting, distances in settings.items():
            if not distances:
                continue
            accuracies = accuracies_by_model(task_runs, distances)
            sampling = {model: _sampling_variance(mean(seeds)) for model, seeds in accuracies.items()}
            sequences = long_range["test_sequences"] * len(distances)
            for rival in (model for model in accuracies if model != TRANSFORMER):
                known_variance = (sampling[TRANSFORMER] + sampling[rival]) / sequences
                difference = difference_of_means(accuracies[TRANSFORMER], accuracies[rival], known_variance)
                differences[Pair(TASK_TITLES[task], rival, setting)] = difference
    note = (
        "The Transformer's accuracy minus the rival's, in points: the difference of the means over "
        f"{plural(len({run['seed'] for run in runs}), 'seed')}, and Welch's t interval, with the variance of sampling "
        f"{long_range['test_sequences']:,} test sequences added. Shorter and longer, a seed's accuracy is its mean "
        "over all those distances."
    )
    return [Verdict(claim, _findings(differences, _points), "on these tasks", "test", note)]


def _sampling_variance(accuracy: float) -> float:
    """The largest variance of one sequence's accuracy (%) about its mean."""
    return max(0.0, accuracy * (100 - accuracy))


def accuracies_by_model(runs: Iterable[Mapping[str, Any]], distances: Sequence[int]) -> dict[str, list[float]]:
    """Model → the accuracy (%) of each seed, its mean over the distances."""
    accuracies: dict[str, list[float]] = {}
    for run in runs:
        accuracy = 100 * mean(run["accuracy"][str(distance)] for distance in distances)
        accuracies.setdefault(run["model"], []).append(accuracy)
    return accuracies


def _judge_quality(claim: str, quality: Sequence[Mapping[str, Any]]) -> list[Verdict]:
    """One verdict, whose groups are the tasks and whose settings are the budgets."""
    differences = {}
    for task in quality:
        sign = 1 if task["higher_is_better"] else -1
        for result in task["budgets"]:
            for paired in result["paired"]:
                lead = Difference(-sign * paired["difference"], paired["standard_error"], math.inf)
                setting = f"{result['budget']}, {result['amount']}"
                differences[Pair(task["task"], paired["model"], setting)] = lead
    note = (
        "How much better the Transformer's score is, in points of the metric, and a normal interval, whose standard "
        "error is that of a paired bootstrap of the test sentences. Each model is trained once."
    )
    scope = "on this task" if len(quality) == 1 else "on these tasks"
    return [Verdict(claim, _findings(differences, _points), scope, "budget", note)]


def _findings(differences: Mapping[Pair, Difference], text: Callable[..., str]) -> list[Finding]:
    """The outcome of each pair, corrected for their number."""
    findings = []
    intervals = simultaneous_intervals(list(differences.values()))
    for (pair, difference), (low, high) in zip(differences.items(), intervals, strict=True):
        outcome = AHEAD if low > 0 else BEHIND if high < 0 else UNCLEAR
        findings.append(Finding(pair, outcome, text(difference.value, low, high), difference.value))
    return findings


def _ratio(*logarithms: float) -> str:
    """A ratio with its interval, from their logarithms."""
    value, low, high = (
        math.exp(logarithm) if logarithm < math.log(MAX_RATIO) else math.inf for logarithm in logarithms
    )
    return with_range(value, low, high, ".2f")


def _points(value: float, low: float, high: float) -> str:
    return with_range(value, low, high, "+.1f")


def p_text(p_value: float) -> str:
    return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.3f}"
