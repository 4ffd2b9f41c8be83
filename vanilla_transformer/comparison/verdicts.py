# SPDX-License-Identifier: Apache-2.0
"""Is the Transformer faster, better at long range, of superior quality? Verdicts computed from the results.

Each claim is judged in several comparisons, each with the rival that did best there. The Transformer is ahead or behind
only if the spread leaves no doubt; otherwise there is no clear difference. `vanilla_transformer.comparison.report`
documents the schema of the results.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, median
from typing import Any, Literal

from vanilla_transformer.comparison.fairness import TRANSFORMER
from vanilla_transformer.comparison.markdown import listing, plural, with_range
from vanilla_transformer.visualization.comparison import DISTANCE_UNITS, TASK_TITLES

SIGNIFICANCE_LEVEL = 0.05  # a difference counts if its p-value is smaller

Outcome = Literal["ahead", "even", "behind"]
OUTCOME_TITLES: dict[Outcome, str] = {
    "ahead": f"{TRANSFORMER} ahead",
    "behind": "A rival ahead",
    "even": "No clear difference",
}


@dataclass(frozen=True)
class Finding:
    """The Transformer against its best rival in one comparison."""

    where: str  # such as "length 128"
    outcome: Outcome
    rival: str
    evidence: str  # the difference and its uncertainty


@dataclass(frozen=True)
class Spread:
    """Mean, minimum and maximum over the seeds."""

    mean: float
    min: float
    max: float

    def percent(self, unit: str = "%") -> str:
        """Such as 92.5% (90.0 to 95.0)."""
        return with_range(100 * self.mean, 100 * self.min, 100 * self.max, unit=unit)


@dataclass(frozen=True)
class Verdict:
    """The answer to one claim, such as "Faster in training: not on cpu: behind in 3 of 3 comparisons."."""

    answer: str
    evidence: tuple[str, ...] = ()  # sentences: where each side is ahead and by how much, then a note on the figures

    @property
    def line(self) -> str:
        return " ".join([self.answer, *self.evidence])


def verdicts(results: Mapping[str, Any]) -> list[Verdict]:
    """The three verdicts, in the order of the report."""
    speed, long_range, quality = results["speed"], results["long_range"], results["quality"]
    return [
        speed_verdict(speed) if speed else _verdict("Faster in training"),
        long_range_verdict(long_range) if long_range else _verdict("Better at long range"),
        quality_verdict(quality) if quality else _verdict("Superior quality"),
    ]


def verdict_lines(results: Mapping[str, Any]) -> list[str]:
    """The three verdicts, a line each."""
    return [verdict.line for verdict in verdicts(results)]


def speed_verdict(speed: Mapping[str, Any]) -> Verdict:
    """Whether the Transformer trains faster, length by length."""
    compared = _speeds_by_length(speed["rows"])
    counts = sorted({len(repeats[TRANSFORMER]) for repeats in compared.values()})
    note = (
        "These are ratios of tokens/s: the median and, in parentheses, the lowest and highest of "
        f"{' or '.join(map(str, counts))} paired repeats."
    )
    missing = sorted({row["length"] for row in speed["rows"]} - compared.keys())
    if missing:
        note += f" Without both sides, hence left out: length {listing(missing)}."
    return _verdict("Faster in training", speed_findings(speed["rows"]), f"on {speed['device']}", note)


def speed_findings(rows: Sequence[Mapping[str, Any]]) -> list[Finding]:
    """A finding for each length at which the Transformer and a rival were measured, the shortest first.

    The rival is the fastest by its median. Repeats are paired by their index: the models were interleaved, so that a
    slow moment of the machine affects both. The Transformer is ahead if it was faster in all pairs.

    Raises:
        ValueError: the Transformer and the rival have different numbers of repeats.
    """
    findings = []
    for length, repeats in _speeds_by_length(rows).items():
        rival = max(_rivals(repeats), key=lambda model: median(repeats[model]))
        ratios = [own / other for own, other in zip(repeats[TRANSFORMER], repeats[rival], strict=True)]
        low, high = min(ratios), max(ratios)
        evidence = f"{with_range(median(ratios), low, high, '.2f')} times as fast as {rival}"
        findings.append(Finding(f"length {length:,}", _outcome(low > 1, high < 1), rival, evidence))
    return findings


def _speeds_by_length(rows: Sequence[Mapping[str, Any]]) -> dict[int, dict[str, list[float]]]:
    """Length → model → repeats, where both sides were measured."""
    by_length: dict[int, dict[str, list[float]]] = {}
    for row in sorted(rows, key=lambda row: row["length"]):
        by_length.setdefault(row["length"], {})[row["model"]] = row["tokens_per_second"]
    return {length: repeats for length, repeats in by_length.items() if _has_both_sides(repeats)}


def long_range_verdict(long_range: Mapping[str, Any]) -> Verdict:
    """Whether the Transformer bridges distances better, at the longest of training and beyond."""
    runs = long_range["tasks"]
    note = (
        "These are accuracies: the mean and, in parentheses, the lowest and highest of "
        f"{plural(len({run['seed'] for run in runs}), 'seed')}; beyond training, each seed's is the mean over all the "
        "longer distances tested."
    )
    findings = long_range_findings(runs, long_range["chance"], long_range["test_sequences"])
    return _verdict("Better at long range", findings, "on these tasks", note)


def long_range_findings(
    runs: Sequence[Mapping[str, Any]], chance: Mapping[str, float], test_sequences: int
) -> list[Finding]:
    """Two findings for each task: at the longest distance of training, and beyond it.

    Beyond training, the accuracy is the mean over all longer distances. The longest alone would show nothing where
    every model guesses, and a distance in between would be chosen knowing the outcome. The rival is the best by its
    mean over the seeds. The Transformer is ahead if its worst seed is better than the rival's best. Neither is ahead
    where both have a seed within three standard errors of chance.

    Raises:
        ValueError: runs of one task that were trained at different distances.
    """
    findings = []
    for task in dict.fromkeys(run["task"] for run in runs):
        task_runs = [run for run in runs if run["task"] == task]
        trained_at = {run["trained_at"] for run in task_runs}
        if len(trained_at) > 1:
            raise ValueError(f"{task}: runs trained at distances {sorted(trained_at)} cannot be compared")
        (longest,) = trained_at
        tested = sorted(set.intersection(*(set(map(int, run["accuracy"])) for run in task_runs)))
        title, unit = TASK_TITLES[task], DISTANCE_UNITS[task]
        beyond = [distance for distance in tested if distance > longest]
        settings = {}
        if longest in tested:
            settings[f"{title} at {longest:,} {unit}, the longest in training"] = [longest]
        if beyond:
            settings[f"{title} beyond training, at {listing(beyond)} {unit}"] = beyond
        for where, distances in settings.items():
            spreads = accuracy_spreads(task_runs, distances)
            if _has_both_sides(spreads):
                findings.append(_long_range_finding(where, spreads, chance[task], test_sequences))
    return findings


def accuracy_spreads(runs: Iterable[Mapping[str, Any]], distances: Sequence[int]) -> dict[str, Spread]:
    """Model → the spread of its seeds, each seed's accuracy a mean over the distances."""
    seeds: dict[str, list[float]] = {}
    for run in runs:
        accuracy = mean(run["accuracy"][str(distance)] for distance in distances)
        seeds.setdefault(run["model"], []).append(accuracy)
    return {model: Spread(mean(values), min(values), max(values)) for model, values in seeds.items()}


def _long_range_finding(where: str, spreads: Mapping[str, Spread], chance: float, test_sequences: int) -> Finding:
    rival = max(_rivals(spreads), key=lambda model: spreads[model].mean)
    own, other = spreads[TRANSFORMER], spreads[rival]
    evidence = f"{own.percent()} against {other.percent()} of {rival}"
    standard_error = (chance * (1 - chance) / test_sequences) ** 0.5
    if max(own.min, other.min) <= chance + 3 * standard_error:
        return Finding(where, "even", rival, f"{evidence}, neither clear of guessing at {100 * chance:.1f}%")
    return Finding(where, _outcome(own.min > other.max, own.max < other.min), rival, evidence)


def quality_verdict(quality: Sequence[Mapping[str, Any]]) -> Verdict:
    """Whether the Transformer's outputs are better, by task and budget."""
    scope = "on this task" if len(quality) == 1 else "on these tasks"
    note = (
        f"The 95% confidence interval of each score is in parentheses; a difference counts if p < {SIGNIFICANCE_LEVEL} "
        "(paired bootstrap resampling of the test sentences)."
    )
    return _verdict("Superior quality", quality_findings(quality), scope, note)


def quality_findings(quality: Sequence[Mapping[str, Any]]) -> list[Finding]:
    """A finding for each task and budget. The rival is the best by its score.

    Raises:
        ValueError: that rival was not compared with the Transformer sentence by sentence.
    """
    findings = []
    for task in quality:
        best = max if task["higher_is_better"] else min
        for result in task["budgets"]:
            models = result["models"]
            if not _has_both_sides(models):
                continue
            rival = best(_rivals(models), key=lambda name: models[name]["score"])
            where = f"{task['task']}, {result['budget']}"
            paired = paired_with_transformer(result)
            if rival not in paired:
                raise ValueError(f"{where}: no paired comparison of {rival} with {TRANSFORMER}")
            findings.append(_quality_finding(where, task, models, rival, paired[rival]))
    return findings


def paired_with_transformer(result: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Model → its paired comparison with the Transformer, at one budget."""
    return {pair["model"]: pair for pair in result["paired"] if pair["baseline"] == TRANSFORMER}


def _quality_finding(
    where: str, task: Mapping[str, Any], models: Mapping[str, Any], rival: str, pair: Mapping[str, Any]
) -> Finding:
    lead = -pair["difference"] if task["higher_is_better"] else pair["difference"]
    is_significant = pair["p_value"] < SIGNIFICANCE_LEVEL
    unit = "%" if task["unit"] == "%" else ""
    own, other = (with_range(models[m]["score"], *models[m]["interval"], unit=unit) for m in (TRANSFORMER, rival))
    evidence = (
        f"{abs(lead):.1f} points {'better' if lead >= 0 else 'worse'} than {rival}, {p_text(pair['p_value'])}: "
        f"{task['metric']} {own} against {other}"
    )
    return Finding(where, _outcome(is_significant and lead > 0, is_significant and lead < 0), rival, evidence)


def p_text(p_value: float) -> str:
    return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.3f}"


def _verdict(claim: str, findings: Sequence[Finding] = (), scope: str = "", note: str = "") -> Verdict:
    """The answer, then the evidence for it, against it, and for neither."""
    if not findings:
        return Verdict(f"{claim}: not measured.")
    groups: dict[Outcome, list[Finding]] = {}
    for outcome in OUTCOME_TITLES:
        if group := [finding for finding in findings if finding.outcome == outcome]:
            groups[outcome] = group
    word = "not" if "ahead" not in groups else "yes" if len(groups) == 1 else "in part"
    counts = listing([f"{outcome} in {len(group)}" for outcome, group in groups.items()])
    sentences = [
        f"{OUTCOME_TITLES[outcome]}: {'; '.join(f'{finding.where} – {finding.evidence}' for finding in group)}."
        for outcome, group in groups.items()
    ]
    answer = f"{claim}: {word} {scope}: {counts} of {plural(len(findings), 'comparison')}."
    return Verdict(answer, (*sentences, note))


def _outcome(is_ahead: bool, is_behind: bool) -> Outcome:
    return "ahead" if is_ahead else "behind" if is_behind else "even"


def _has_both_sides(models: Mapping[str, Any]) -> bool:
    return TRANSFORMER in models and len(models) > 1


def _rivals(models: Iterable[str]) -> list[str]:
    return [model for model in models if model != TRANSFORMER]
