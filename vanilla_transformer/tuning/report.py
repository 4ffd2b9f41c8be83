# SPDX-License-Identifier: Apache-2.0
"""The report of a sweep: report.md and its plots, computed from the results alone.

The results are one dict, saved as trials.json: `metric`, `higher_is_better`, `unit`, `budget_unit` ("minutes" or
"updates"), the `budgets` of a trial in each rung, the `plan` in words, and `runs`: for each the number of its `best`
trial in the last rung (`None`: all failed), the `overrides` of `train` that give its settings, the `importance` of each
key, and `trials`. A trial has its `number` (0: the run's own settings), its `settings`, and `rungs`, an outcome for
each rung that it reached: `score`, `updates`, `minutes`, `epochs`, `parameters`, `precision` and `error`; a failure has
its `error`, and `score` is `None`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vanilla_transformer.comparison.markdown import MISSING, escape, listing, table
from vanilla_transformer.visualization.style import model_styles
from vanilla_transformer.visualization.sweep import plot_rungs, plot_values, value_text

Results = Mapping[str, Any]


def write_report(results: Results, folder: Path) -> None:
    """Write `folder/report.md`, `rungs.png` and `values.png`, over existing ones."""
    styles = model_styles({name: name for name in results["runs"]}, "runs")
    plot_rungs(results, styles).savefig(folder / "rungs.png")
    plot_values(results, styles).savefig(folder / "values.png")
    better = "higher" if results["higher_is_better"] else "lower"
    parts = [
        f"# A sweep of {escape(listing(list(results['runs'])))}",
        f"By {results['metric']} on the validation data: {better} is better. The test data was not read.",
        escape(results["plan"]),
        "Each trial began anew in each rung, and ended at the rung's budget. Each score comes from one seed.",
        "![The score of every trial at each rung](rungs.png)",
        "![The scores of the first rung against each value](values.png)",
    ]
    for name, run in results["runs"].items():
        parts += [f"## {escape(name)}", *_run(results, run)]
    (folder / "report.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8", newline="\n")


def conclusion(results: Results, run: Mapping[str, Any]) -> str:
    """The best trial of a run beside its own settings, in one sentence."""
    if run["best"] is None:
        return "All trials of the last rung failed."
    score, own = (run["trials"][number]["rungs"][-1]["score"] for number in (run["best"], 0))
    shown = f"{results['budgets'][-1]:,.3g} {results['budget_unit']}: {score_text(results['unit'], score)}"
    if run["best"] == 0:
        return f"After {shown}, with the run's own settings: no other trial was better."
    return f"After {shown}, by trial {run['best']}; the run's own settings: {score_text(results['unit'], own)}."


def score_text(unit: str, score: float | None) -> str:
    """A score, with its unit where that is short."""
    unit = "%" if unit == "%" else ""
    return MISSING if score is None else f"{score:.2f}{unit}"


def _run(results: Results, run: Mapping[str, Any]) -> list[str]:
    parts, keys = [conclusion(results, run)], list(run["trials"][0]["settings"])
    if run["best"]:
        parts.append("```\n" + "\n".join(run["overrides"]) + "\n```")
    shares = [[f"`{key}`", f"{share:.0%}"] for key, share in run["importance"].items()]
    parts.append("How much each key matters for being among the best in the first rung (PED-ANOVA):")
    parts.append(table(["key", "importance"], shares))
    rows = []
    for trial in sorted(run["trials"], key=lambda trial: _rank(results, trial)):
        values = [escape(value_text(value)) for value in trial["settings"].values()]
        outcomes = [*trial["rungs"], *[{"score": None}] * (len(results["budgets"]) - len(trial["rungs"]))]
        scores = [score_text(results["unit"], outcome["score"]) for outcome in outcomes]
        last = trial["rungs"][-1]
        facts = [MISSING] * 4
        if last["error"] is None:
            facts = [f"{last['parameters']:,}", f"{last['updates']:,}", f"{last['minutes']:.2f}", last["precision"]]
        name = f"{trial['number']}{' (own)' * (trial['number'] == 0)}"
        rows.append([name, *values, *scores, *facts, escape(last["error"] or "")])
    budgets = [f"{budget:,.3g} {results['budget_unit']}" for budget in results["budgets"]]
    facts = ["parameters", "updates", "minutes", "precision", "failure"]
    parts.append(table(["trial", *(f"`{key}`" for key in keys), *budgets, *facts], rows))
    return parts


def _rank(results: Results, trial: Mapping[str, Any]) -> tuple[int, float]:
    """Trials of the last rungs come first, and among them the best."""
    scores = [outcome["score"] for outcome in trial["rungs"] if outcome["score"] is not None]
    sign = -1 if results["higher_is_better"] else 1
    return -len(scores), sign * scores[-1] if scores else 0.0
