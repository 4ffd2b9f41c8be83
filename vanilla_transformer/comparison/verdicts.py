# SPDX-License-Identifier: Apache-2.0
"""Is the Transformer faster, better at long range, of superior quality? Verdicts computed from the results.

Each claim is judged in several comparisons, each with the rival that did best there. The Transformer is ahead or behind
only if the spread leaves no doubt; otherwise there is no clear difference. `vanilla_transformer.comparison.report`
documents the schema of the results.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, median
from typing import Any

from vanilla_transformer.comparison.fairness import TRANSFORMER
from vanilla_transformer.comparison.markdown import listing, plural, with_extremes, with_range
from vanilla_transformer.visualization.comparison import DISTANCE_UNITS, TASK_TITLES, training_rows

SIGNIFICANCE_LEVEL = 0.05  # a difference counts if its p-value is smaller
OUTCOME_TITLES = {"ahead": f"{TRANSFORMER} ahead", "behind": "A rival ahead", "even": "No clear difference"}


@dataclass(frozen=True)
class Finding:
    """The Transformer against its best rival in one comparison."""

    where: str  # such as "length 128"
    outcome: str  # a key of OUTCOME_TITLES
    rival: str
    evidence: str  # the difference and its uncertainty


@dataclass(frozen=True)
class Verdict:
    """One claim of the paper, with the findings that support or refute it.

    Args:
        scope: such as "on these tasks".
        note: a sentence on the figures.
    """

    claim: str
    findings: Sequence[Finding] = ()
    scope: str = ""
    note: str = ""

    @property
    def sentences(self) -> list[str]:
        """The answer, then the evidence for it, against it, and for neither, then the note.

        An answer is, for example, "Faster in training: not on cpu: behind in 3 of 3 comparisons.".
        """
        if not self.findings:
            return [f"{self.claim}: not measured."]
        groups: dict[str, list[Finding]] = {}
        for finding in sorted(self.findings, key=lambda finding: list(OUTCOME_TITLES).index(finding.outcome)):
            groups.setdefault(finding.outcome, []).append(finding)
        word = "not" if "ahead" not in groups else "yes" if len(groups) == 1 else "in part"
        counts = listing([f"{outcome} in {len(group)}" for outcome, group in groups.items()])
        evidence = [
            f"{OUTCOME_TITLES[outcome]}: {'; '.join(f'{finding.where} – {finding.evidence}' for finding in group)}."
            for outcome, group in groups.items()
        ]
        answer = f"{self.claim}: {word} {self.scope}: {counts} of {plural(len(self.findings), 'comparison')}."
        return [answer, *evidence, self.note]


def verdicts(results: Mapping[str, Any]) -> dict[str, Verdict]:
    """The verdict on each part of the results, in the order of the report."""
    claims = {
        "speed": ("Faster in training", _judge_speed),
        "long_range": ("Better at long range", _judge_long_range),
        "quality": ("Superior quality", _judge_quality),
    }
    return {
        part: Verdict(claim, *judge(results[part])) if results[part] else Verdict(claim)
        for part, (claim, judge) in claims.items()
    }


def _judge_speed(speed: Mapping[str, Any]) -> tuple[list[Finding], str, str]:
    """Findings (one for each length in the setting of training, the shortest first), scope and note.

    The rival is the fastest by its median. Repeats are paired by their index: the models were interleaved, so that a
    slow moment of the machine affects both. The Transformer is ahead if it was faster in all pairs.
    """
    findings = []
    whole, _ = training_rows(speed)
    for length, repeats in speeds_by_length(whole).items():
        if rival := _best_rival({model: median(speeds) for model, speeds in repeats.items()}):
            ratios = [own / other for own, other in zip(repeats[TRANSFORMER], repeats[rival], strict=True)]
            outcome = _outcome(min(ratios) > 1, max(ratios) < 1)
            evidence = f"{with_extremes(ratios, median, '.2f')} times as fast as {rival}"
            findings.append(Finding(f"length {length:,}", outcome, rival, evidence))
    note = (
        "These are ratios of tokens/s: the median and, in parentheses, the lowest and highest of "
        f"{len(speed['rows'][0]['tokens_per_second'])} paired repeats."
    )
    return findings, f"on {speed['device']}", note


def speeds_by_length(rows: Sequence[Mapping[str, Any]]) -> dict[int, dict[str, list[float]]]:
    """Length → model → tokens per second in each repeat, the shortest length first."""
    by_length: dict[int, dict[str, list[float]]] = {}
    for row in sorted(rows, key=lambda row: row["length"]):
        by_length.setdefault(row["length"], {})[row["model"]] = row["tokens_per_second"]
    return by_length


def _judge_long_range(long_range: Mapping[str, Any]) -> tuple[list[Finding], str, str]:
    """Findings (two for each task: at the longest distance of training, and beyond it), scope and note.

    Beyond training, the accuracy is the mean over all longer distances. The longest alone would show nothing where
    every model guesses, and a distance in between would be chosen knowing the outcome. The rival is the best by its
    mean over the seeds. The Transformer is ahead if its worst seed is better than the rival's best. Neither is ahead
    where both have a seed within three standard errors of chance.
    """
    findings, runs = [], long_range["tasks"]
    for task in dict.fromkeys(run["task"] for run in runs):
        task_runs = [run for run in runs if run["task"] == task]
        longest, tested = task_runs[0]["trained_at"], sorted(map(int, task_runs[0]["accuracy"]))
        title, unit = TASK_TITLES[task], DISTANCE_UNITS[task]
        settings = {}
        if longest in tested:
            settings[f"{title} at {longest:,} {unit}, the longest in training"] = [longest]
        if beyond := [distance for distance in tested if distance > longest]:
            settings[f"{title} beyond training, at {listing(beyond)} {unit}"] = beyond
        chance = long_range["chance"][task]
        standard_error = (chance * (1 - chance) / long_range["test_sequences"]) ** 0.5
        for where, distances in settings.items():
            accuracies = accuracies_by_model(task_runs, distances)
            if rival := _best_rival({model: mean(seeds) for model, seeds in accuracies.items()}):
                own, other = accuracies[TRANSFORMER], accuracies[rival]
                outcome = _outcome(min(own) > max(other), max(own) < min(other))
                evidence = " against ".join(with_extremes(seeds, mean, unit="%") for seeds in (own, other))
                evidence += f" of {rival}"
                if max(min(own), min(other)) <= 100 * (chance + 3 * standard_error):
                    outcome, evidence = "even", f"{evidence}, neither clear of guessing at {100 * chance:.1f}%"
                findings.append(Finding(where, outcome, rival, evidence))
    note = (
        "These are accuracies: the mean and, in parentheses, the lowest and highest of "
        f"{plural(len({run['seed'] for run in runs}), 'seed')}; beyond training, each seed's is the mean over all the "
        "longer distances tested."
    )
    return findings, "on these tasks", note


def accuracies_by_model(runs: Iterable[Mapping[str, Any]], distances: Sequence[int]) -> dict[str, list[float]]:
    """Model → the accuracy (%) of each seed, its mean over the distances."""
    accuracies: dict[str, list[float]] = {}
    for run in runs:
        accuracy = 100 * mean(run["accuracy"][str(distance)] for distance in distances)
        accuracies.setdefault(run["model"], []).append(accuracy)
    return accuracies


def _judge_quality(quality: Sequence[Mapping[str, Any]]) -> tuple[list[Finding], str, str]:
    """Findings (one for each task and budget), scope and note. The rival is the best by its score."""
    findings = []
    for task in quality:
        sign, unit = 1 if task["higher_is_better"] else -1, "%" if task["unit"] == "%" else ""
        for result in task["budgets"]:
            models, pairs = result["models"], {pair["model"]: pair for pair in result["paired"]}
            rival = _best_rival({name: sign * model["score"] for name, model in models.items()})
            assert rival is not None  # the configuration asks for two models
            lead, p_value = -sign * pairs[rival]["difference"], pairs[rival]["p_value"]
            is_significant = p_value < SIGNIFICANCE_LEVEL
            scores = [with_range(models[m]["score"], *models[m]["interval"], unit=unit) for m in (TRANSFORMER, rival)]
            evidence = (
                f"{abs(lead):.1f} points {'better' if lead >= 0 else 'worse'} than {rival}, {p_text(p_value)}: "
                f"{task['metric']} {' against '.join(scores)}"
            )
            outcome = _outcome(is_significant and lead > 0, is_significant and lead < 0)
            findings.append(Finding(f"{task['task']}, {result['amount']}", outcome, rival, evidence))
    note = (
        f"The 95% confidence interval of each score is in parentheses; a difference counts if p < {SIGNIFICANCE_LEVEL} "
        "(paired bootstrap resampling of the test sentences)."
    )
    return findings, "on this task" if len(quality) == 1 else "on these tasks", note


def p_text(p_value: float) -> str:
    return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.3f}"


def _outcome(is_ahead: bool, is_behind: bool) -> str:
    return "ahead" if is_ahead else "behind" if is_behind else "even"


def _best_rival(merits: Mapping[str, float]) -> str | None:
    """The model of the highest merit but the Transformer; `None` if the Transformer is alone."""
    return max((model for model in merits if model != TRANSFORMER), key=lambda model: merits[model], default=None)
