# SPDX-License-Identifier: Apache-2.0
"""Is the Transformer faster, better at long range, of superior quality? Verdicts computed from the results.

Each claim falls into comparisons with the rival that did best there. The Transformer is ahead or behind only if the
spread leaves no doubt; otherwise there is no clear difference. `vanilla_transformer.comparison.report` tells the schema
of the results.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, median
from typing import Any, Literal

from vanilla_transformer.comparison.fairness import TRANSFORMER
from vanilla_transformer.visualization.comparison import DISTANCE_UNITS, TASK_TITLES

SIGNIFICANT = 0.05  # a smaller p-value is a difference

Outcome = Literal["ahead", "even", "behind"]


@dataclass(frozen=True)
class Finding:
    """The Transformer against the best of its rivals in one comparison.

    Args:
        where: what was compared, such as "length 128".
        outcome: of the Transformer.
        rival: the name of the best rival.
        evidence: by how much, with which uncertainty.
    """

    where: str
    outcome: Outcome
    rival: str
    evidence: str


@dataclass(frozen=True)
class Spread:
    """The mean of one figure over seeds, and its extremes; shares between 0 and 1."""

    centre: float
    lowest: float
    highest: float


@dataclass(frozen=True)
class Verdict:
    """What the results say of one claim.

    Args:
        answer: one sentence, such as "Faster in training: not on cpu: behind in 3 of 3 comparisons."
        evidence: sentences: where each side is ahead and by how much, then what the figures mean.
    """

    answer: str
    evidence: tuple[str, ...] = ()

    @property
    def line(self) -> str:
        return " ".join([self.answer, *self.evidence])


def verdicts(results: Mapping[str, Any]) -> list[Verdict]:
    """The three verdicts, in the order of the report."""
    return [
        speed_verdict(results["speed"]),
        long_range_verdict(results["long_range"]),
        quality_verdict(results["quality"]),
    ]


def verdict_lines(results: Mapping[str, Any]) -> list[str]:
    """The three verdicts, a line each, to be printed."""
    return [verdict.line for verdict in verdicts(results)]


def speed_verdict(speed: Mapping[str, Any] | None) -> Verdict:
    """Whether the Transformer trains faster, length by length. `None` is not measured."""
    if not speed:
        return _verdict("Faster in training", [], "", "")
    compared = _speed_by_length(speed["rows"])
    counts = sorted({len(repeats[TRANSFORMER]) for _, repeats in compared})
    note = (
        "These are ratios of tokens/s: the median and, in parentheses, the lowest and highest of "
        f"{' or '.join(map(str, counts))} paired repeats."
    )
    one_side = sorted({row["length"] for row in speed["rows"]} - {length for length, _ in compared})
    if one_side:
        note += f" Without both sides, hence left out: length {_listed(one_side)}."
    return _verdict("Faster in training", speed_findings(speed["rows"]), f"on {speed['device']}", note)


def speed_findings(rows: Sequence[Mapping[str, Any]]) -> list[Finding]:
    """One for each length at which the Transformer and a rival were measured, the shortest first.

    The rival is the fastest by its median. Repeats are paired by their index, since they were measured in turns: what
    slowed the machine slowed both. The Transformer is ahead if it was faster in all of them.

    Raises:
        ValueError: other numbers of repeats for the Transformer than for the rival.
    """
    findings = []
    for length, repeats in _speed_by_length(rows):
        rival = max((model for model in repeats if model != TRANSFORMER), key=lambda model: median(repeats[model]))
        ratios = [own / other for own, other in zip(repeats[TRANSFORMER], repeats[rival], strict=True)]
        lowest, highest = min(ratios), max(ratios)
        outcome = "ahead" if lowest > 1 else "behind" if highest < 1 else "even"
        evidence = f"{median(ratios):.2f} ({lowest:.2f} to {highest:.2f}) times as fast as {rival}"
        findings.append(Finding(f"length {length:,}", outcome, rival, evidence))
    return findings


def _speed_by_length(rows: Sequence[Mapping[str, Any]]) -> list[tuple[int, dict[str, list[float]]]]:
    """(length, repeats of each model) where both sides were measured."""
    by_length: dict[int, dict[str, list[float]]] = {}
    for row in rows:
        by_length.setdefault(row["length"], {})[row["model"]] = row["tokens_per_second"]
    return [(length, by_length[length]) for length in sorted(by_length) if _both_sides(by_length[length])]


def long_range_verdict(long_range: Mapping[str, Any] | None) -> Verdict:
    """Whether the Transformer bridges distances better, at the longest of training and beyond. `None`: not measured."""
    if not long_range:
        return _verdict("Better at long range", [], "", "")
    runs = long_range["tasks"]
    seeds = len({run["seed"] for run in runs})
    note = (
        f"These are accuracies: the mean and, in parentheses, the lowest and highest of {_counted(seeds, 'seed')}; "
        "beyond training, each seed's is the mean over all the longer distances tested."
    )
    findings = long_range_findings(runs, long_range["chance"], long_range["test_sequences"])
    return _verdict("Better at long range", findings, "on these tasks", note)


def long_range_findings(
    runs: Sequence[Mapping[str, Any]], chance: Mapping[str, float], test_sequences: int
) -> list[Finding]:
    """Two for each task: at the longest distance of training, and beyond.

    Beyond is the mean over all the longer distances. The longest of them alone would show nothing where every model is
    down to guessing there, and one chosen between would be chosen knowing the outcome. The rival is the best by its
    mean over the seeds. The Transformer is ahead if its worst seed is better than the rival's best, and neither is
    where both have a seed that guessing could have had on so many test sequences, to three standard deviations.

    Raises:
        ValueError: runs of one task that were trained at different distances.
    """
    findings = []
    for task in dict.fromkeys(run["task"] for run in runs):
        of_task = [run for run in runs if run["task"] == task]
        limits = {run["trained_at"] for run in of_task}
        if len(limits) > 1:
            raise ValueError(f"{task}: runs trained at distances {sorted(limits)} cannot be compared")
        (limit,) = limits
        tested = sorted(set.intersection(*(set(map(int, run["accuracy"])) for run in of_task)))
        title, unit = TASK_TITLES[task], DISTANCE_UNITS[task]
        beyond = [distance for distance in tested if distance > limit]
        places = []
        if limit in tested:
            places.append((f"{title} at {limit:,} {unit}, the longest in training", [limit]))
        if beyond:
            places.append((f"{title} beyond training, at {_listed(beyond)} {unit}", beyond))
        for where, distances in places:
            spreads = accuracy_spreads(of_task, distances)
            if _both_sides(spreads):
                findings.append(_long_range_finding(where, spreads, chance[task], test_sequences))
    return findings


def accuracy_spreads(runs: Sequence[Mapping[str, Any]], distances: Sequence[int]) -> dict[str, Spread]:
    """For each model the accuracy over its seeds, each seed's a mean over the distances."""
    of_model: dict[str, list[float]] = {}
    for run in runs:
        accuracy = mean(run["accuracy"][str(distance)] for distance in distances)
        of_model.setdefault(run["model"], []).append(accuracy)
    return {model: Spread(mean(seeds), min(seeds), max(seeds)) for model, seeds in of_model.items()}


def _long_range_finding(where: str, spreads: Mapping[str, Spread], chance: float, test_sequences: int) -> Finding:
    own = spreads[TRANSFORMER]
    rival = max((model for model in spreads if model != TRANSFORMER), key=lambda model: spreads[model].centre)
    other = spreads[rival]
    evidence = f"{_percent(own)} against {_percent(other)} of {rival}"
    if max(own.lowest, other.lowest) <= chance + 3 * (chance * (1 - chance) / test_sequences) ** 0.5:
        return Finding(where, "even", rival, f"{evidence}, neither clear of guessing at {100 * chance:.1f}%")
    outcome = "ahead" if own.lowest > other.highest else "behind" if own.highest < other.lowest else "even"
    return Finding(where, outcome, rival, evidence)


def _percent(spread: Spread) -> str:
    return f"{100 * spread.centre:.1f}% ({100 * spread.lowest:.1f} to {100 * spread.highest:.1f})"


def quality_verdict(quality: Sequence[Mapping[str, Any]] | None) -> Verdict:
    """Whether the Transformer's outputs are better, by task and budget. `None` is not measured."""
    tasks = quality or []
    place = "on this task" if len(tasks) == 1 else "on these tasks"
    note = (
        f"The 95% interval of each score is in parentheses; a difference counts if p < {SIGNIFICANT} (paired bootstrap "
        "over the test sentences)."
    )
    return _verdict("Superior quality", quality_findings(tasks), place, note)


def quality_findings(quality: Sequence[Mapping[str, Any]]) -> list[Finding]:
    """One for each task and budget. The rival is the best by its score.

    Raises:
        ValueError: that rival was not compared with the Transformer sentence by sentence.
    """
    findings = []
    for task in quality:
        best = max if task["higher_is_better"] else min
        for result in task["budgets"]:
            models = result["models"]
            if not _both_sides(models):
                continue
            rival = best((model for model in models if model != TRANSFORMER), key=lambda name: models[name]["score"])
            where = f"{task['task']}, {result['budget']}"
            paired = {pair["model"]: pair for pair in result["paired"] if pair["baseline"] == TRANSFORMER}
            if rival not in paired:
                raise ValueError(f"{where}: no paired comparison of {rival} with {TRANSFORMER}")
            findings.append(_quality_finding(where, task, models, rival, paired[rival]))
    return findings


def _quality_finding(
    where: str, task: Mapping[str, Any], models: Mapping[str, Any], rival: str, pair: Mapping[str, Any]
) -> Finding:
    lead = -pair["difference"] if task["higher_is_better"] else pair["difference"]
    outcome = "even" if pair["p_value"] >= SIGNIFICANT or lead == 0 else "ahead" if lead > 0 else "behind"
    sign = "%" if task["unit"] == "%" else ""
    scores = [
        f"{score['score']:.1f}{sign} ({score['interval'][0]:.1f} to {score['interval'][1]:.1f})"
        for score in (models[TRANSFORMER], models[rival])
    ]
    evidence = (
        f"{abs(lead):.1f} points {'better' if lead >= 0 else 'worse'} than {rival}, {p_text(pair['p_value'])}: "
        f"{task['metric']} {scores[0]} against {scores[1]}"
    )
    return Finding(where, outcome, rival, evidence)


def p_text(p_value: float) -> str:
    return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.3f}"


def _verdict(claim: str, findings: Sequence[Finding], place: str, note: str) -> Verdict:
    """The answer, then what speaks for it, what against it, and what for neither."""
    if not findings:
        return Verdict(f"{claim}: not measured.")
    titles = {"ahead": f"{TRANSFORMER} ahead", "behind": "A rival ahead", "even": "No clear difference"}
    groups = {outcome: [f for f in findings if f.outcome == outcome] for outcome in titles}
    word = "yes" if len(groups["ahead"]) == len(findings) else "in part" if groups["ahead"] else "not"
    counts = _listed([f"{outcome} in {len(group)}" for outcome, group in groups.items() if group])
    sentences = [
        f"{titles[outcome]}: {'; '.join(f'{finding.where} – {finding.evidence}' for finding in group)}."
        for outcome, group in groups.items()
        if group
    ]
    answer = f"{claim}: {word} {place}: {counts} of {_counted(len(findings), 'comparison')}."
    return Verdict(answer, (*sentences, note))


def _both_sides(models: Mapping[str, Any]) -> bool:
    return TRANSFORMER in models and len(models) > 1


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _listed(items: Sequence[int | str]) -> str:
    """Such as 64, 128 and 1,024."""
    *first, last = (f"{item:,}" if isinstance(item, int) else item for item in items)
    return f"{', '.join(first)} and {last}" if first else last
