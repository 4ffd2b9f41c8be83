# SPDX-License-Identifier: Apache-2.0
"""The sections of the report: each writes its plots into the folder and returns its blocks of Markdown."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from vanilla_transformer.comparison.fairness import TRANSFORMER
from vanilla_transformer.comparison.markdown import MISSING, escape, number, table, with_range
from vanilla_transformer.comparison.verdicts import (
    SIGNIFICANCE_LEVEL,
    accuracy_spreads,
    p_text,
    paired_with_transformer,
    speed_findings,
)
from vanilla_transformer.training.reporting import truncate
from vanilla_transformer.visualization import comparison as plots
from vanilla_transformer.visualization.comparison import DISTANCE_UNITS, STAGES, TASK_TITLES, Rows, Styles

NOT_MEASURED = "Not measured."
PLOTTED_BUDGET = "equal time"
EXAMPLES = 3  # for each task

TABLE_1 = table(
    ["Table 1 of the paper: layer", "work per layer", "sequential operations", "longest path between two positions"],
    [["self-attention", "O(n² · d)", "O(1)", "O(1)"], ["recurrent", "O(n · d²)", "O(n)", "O(n)"]],
)


def speed_section(speed: Mapping[str, Any] | None, styles: Styles, folder: Path) -> list[str]:
    """Tokens per second by length, beside the paper's Table 1."""
    if not speed:
        return [NOT_MEASURED, TABLE_1]
    plots.plot_speed(speed, styles).savefig(folder / "speed.png")
    models = plots.models_in_order(styles, speed["rows"])
    findings = {finding.where: f"{finding.evidence}: {finding.outcome}" for finding in speed_findings(speed["rows"])}
    rows = []
    for length in sorted({row["length"] for row in speed["rows"]}):
        at_length = [row for row in speed["rows"] if row["length"] == length]
        batch_sizes = " or ".join(map(str, sorted({row["batch_size"] for row in at_length})))
        repeats = {row["model"]: row["tokens_per_second"] for row in at_length}
        speeds = [_median_with_range(repeats.get(model), ",.0f") for model in models]
        rows.append([f"{length:,}", batch_sizes, *speeds, escape(findings.get(f"length {length:,}", MISSING))])
    header = ["length (tokens)", "batch size", *map(escape, models), f"{TRANSFORMER} / fastest rival"]
    return [
        f"Whole updates on {escape(speed['device'])} in {escape(speed['precision'])}, in target tokens per second "
        "(each batch has as many source tokens): the median and, in parentheses, the lowest and highest of the "
        "repeats. The models were measured in turns, so that a slow moment of the machine affects all of them.",
        "![Training speed against length, a line for each model](speed.png)",
        table(header, rows),
        f"The theory, for a sequence of length n and vectors of width d:\n\n{TABLE_1}",
        "Few sequential operations let a device work on all positions at once, but the work of self-attention grows "
        "with the square of the length. Which of the two decides depends on the length, the width and the device.",
    ]


def long_range_section(long_range: Mapping[str, Any] | None, styles: Styles, folder: Path) -> list[str]:
    """How far gradients reach, and how accuracy falls with the distance."""
    if not long_range:
        return [NOT_MEASURED]
    return [
        "### Gradient norm by distance",
        *_gradients(long_range["gradients"], styles, folder),
        "### Accuracy by distance",
        *_tasks(long_range, styles, folder),
    ]


def _gradients(gradients: Rows, styles: Styles, folder: Path) -> list[str]:
    if not gradients:
        return [NOT_MEASURED]
    plots.plot_gradients(gradients, styles).savefig(folder / "gradients.png")
    farthest = min(len(run["norms"]) for run in gradients) - 1
    stages = [when for when in STAGES if any(run["when"] == when for run in gradients)]
    rows = []
    for model in plots.models_in_order(styles, gradients):
        runs = [run for run in gradients if run["model"] == model]
        norms = [[plots.relative_norms(run)[farthest] for run in runs if run["when"] == when] for when in stages]
        rows.append([escape(model), *(_median_with_range(seeds, ".2g") for seeds in norms)])
    return [
        "The norm of the gradient of the encoder's last output with respect to the input d steps back, divided by the "
        "norm at d = 0: the median over the seeds, with a band from the lowest to the highest. The attention of the "
        "decoder is a second, shorter path, which this does not measure.",
        "![Relative gradient norm against steps back, before and after training](gradients.png)",
        f"The relative norm {farthest:,} steps back, with the lowest and highest seed in parentheses:",
        table(["model", *(STAGES[when] for when in stages)], rows),
    ]


def _tasks(long_range: Mapping[str, Any], styles: Styles, folder: Path) -> list[str]:
    runs, chance = long_range["tasks"], long_range["chance"]
    plots.plot_long_range(runs, chance, styles).savefig(folder / "long_range.png")
    blocks = [
        "The models train on distances up to the dashed line, and are tested up to there and beyond, on random "
        "sequences of other seeds. The shortest sequences are so few that training has seen them. The mean over the "
        "seeds is drawn, with a band from the lowest to the highest.",
        "![Accuracy against distance, a panel for each task](long_range.png)",
    ]
    for task in dict.fromkeys(run["task"] for run in runs):
        blocks.append(
            f"**{TASK_TITLES[task]}**, accuracy in % by distance in {DISTANCE_UNITS[task]}; guessing gives "
            f"{100 * chance[task]:.1f}%. In parentheses the lowest and highest seed."
        )
        blocks.append(_task_table([run for run in runs if run["task"] == task], styles))
    return blocks


def _task_table(runs: Rows, styles: Styles) -> str:
    distances = sorted({int(distance) for run in runs for distance in run["accuracy"]})
    trained_at = {run["trained_at"] for run in runs}
    spreads = {d: accuracy_spreads((run for run in runs if str(d) in run["accuracy"]), [d]) for d in distances}
    rows = []
    for model in plots.models_in_order(styles, runs):
        model_runs = [run for run in runs if run["model"] == model]
        accuracies = [spreads[d][model].percent(unit="") if model in spreads[d] else MISSING for d in distances]
        minutes = median(run["seconds"] for run in model_runs) / 60
        updates = median(run["updates"] for run in model_runs)
        rows.append([escape(model), *accuracies, str(len(model_runs)), f"{updates:,.0f}", f"{minutes:.1f}"])
    columns = [f"{d:,} (longest in training)" if d in trained_at else f"{d:,}" for d in distances]
    return table(["model", *columns, "seeds", "updates (median)", "minutes (median)"], rows)


def quality_section(quality: Rows | None, styles: Styles, folder: Path) -> list[str]:
    """Scores by task and budget, by length of the source, and a few outputs."""
    if not quality:
        return [NOT_MEASURED]
    blocks = [
        f"The difference is the model's score minus that of the {TRANSFORMER}. It counts if p < {SIGNIFICANCE_LEVEL} "
        "(paired bootstrap resampling of the test sentences). The 95% confidence interval of each score is in "
        "parentheses.",
    ]
    for task in quality:
        blocks += _quality_of_task(task, styles)
    plots.plot_quality_by_length(quality, PLOTTED_BUDGET, styles).savefig(folder / "quality_by_length.png")
    blocks.append("### By length of the source")
    blocks.append("![Scores by length of the source, a bar for each model](quality_by_length.png)")
    for task in quality:
        (result,) = (result for result in task["budgets"] if result["budget"] == PLOTTED_BUDGET)
        models = [model for model in styles if model in result["models"]]
        rows = [
            [escape(row["bucket"]), f"{row['sentences']:,}", *(number(row["scores"].get(m), ".1f") for m in models)]
            for row in result["by_length"]
        ]
        blocks.append(f"**{escape(task['task'])}**, {PLOTTED_BUDGET}, {_scale(task)}:")
        blocks.append(table(["source tokens", "sentences", *map(escape, models)], rows))
    return blocks


def _quality_of_task(task: Mapping[str, Any], styles: Styles) -> list[str]:
    signature = f" Signature: `{task['signature']}`." if task["signature"] else ""
    header = ["model", escape(task["metric"]), f"difference to {TRANSFORMER}"]
    header += ["updates", "epochs", "minutes", "target tokens/s"]
    blocks = [
        f"### {escape(task['task'])}",
        f"{_scale(task)}; {task['sentences']:,} test sentences, a vocabulary of {task['vocab_size']:,}.{signature}",
    ]
    for result in task["budgets"]:
        paired = paired_with_transformer(result)
        rows = []
        for model in (model for model in styles if model in result["models"]):
            facts, pair = result["models"][model], paired.get(model)
            rows.append(
                [
                    escape(model),
                    with_range(facts["score"], *facts["interval"]),
                    f"{pair['difference']:+.1f}, {p_text(pair['p_value'])}" if pair else MISSING,
                    f"{facts['updates']:,}",
                    f"{facts['epochs']:.1f}",
                    f"{facts['training_seconds'] / 60:.1f}",
                    f"{facts['target_tokens_per_second']:,.0f}",
                ]
            )
        blocks.append(f"**{escape(result['budget'].capitalize())}** ({escape(result['amount'])}):")
        blocks.append(table(header, rows))
    last = task["budgets"][-1]
    if last["examples"]:
        blocks.append(f"The models' outputs at {escape(last['budget'])}:")
    for example in last["examples"][:EXAMPLES]:
        texts = {"source": example["source"], "reference": example["reference"]}
        texts |= {model: example["outputs"][model] for model in styles if model in example["outputs"]}
        blocks.append(
            table(["", "text"], [[escape(name), escape(truncate(text, 200))] for name, text in texts.items()])
        )
    return blocks


def _scale(task: Mapping[str, Any]) -> str:
    better = "higher" if task["higher_is_better"] else "lower"
    return f"{escape(task['metric'])} in {escape(task['unit'])}, {better} is better"


def _median_with_range(values: Sequence[float] | None, spec: str) -> str:
    return with_range(median(values), min(values), max(values), spec) if values else MISSING
