# SPDX-License-Identifier: Apache-2.0
"""The parts of the report: each writes its plots into the folder and returns its blocks of Markdown."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from vanilla_transformer.comparison.fairness import TRANSFORMER
from vanilla_transformer.comparison.markdown import cut, escape, table
from vanilla_transformer.comparison.verdicts import (
    SIGNIFICANT,
    accuracy_spreads,
    p_text,
    speed_findings,
)
from vanilla_transformer.visualization.comparison import (
    DISTANCE_UNITS,
    STAGES,
    TASK_TITLES,
    plot_gradients,
    plot_long_range,
    plot_quality_by_length,
    plot_speed,
    relative_norms,
)
from vanilla_transformer.visualization.style import SeriesStyle

NOT_MEASURED = "Not measured."
BUDGET_OF_THE_PLOT = "equal time"
EXAMPLES = 3  # shown for each task

TABLE_1 = table(
    ["Table 1 of the paper: layer", "work per layer", "sequential operations", "longest path between two positions"],
    [["self-attention", "O(n² · d)", "O(1)", "O(1)"], ["recurrent", "O(n · d²)", "O(n)", "O(n)"]],
)


def speed_section(speed: Mapping[str, Any] | None, styles: Mapping[str, SeriesStyle], folder: Path) -> list[str]:
    """Tokens per second by length, beside the paper's Table 1."""
    if not speed or not speed["rows"]:
        return [NOT_MEASURED, TABLE_1]
    plot_speed(speed, styles).savefig(folder / "speed.png")
    models = [model for model in styles if any(row["model"] == model for row in speed["rows"])]
    ratios = {finding.where: f"{finding.evidence}: {finding.outcome}" for finding in speed_findings(speed["rows"])}
    rows = []
    for length in sorted({row["length"] for row in speed["rows"]}):
        at_length = {row["model"]: row for row in speed["rows"] if row["length"] == length}
        batch_sizes = " or ".join(map(str, sorted({row["batch_size"] for row in at_length.values()})))
        speeds = [_repeats(at_length[model]["tokens_per_second"]) if model in at_length else "–" for model in models]
        rows.append([f"{length:,}", batch_sizes, *speeds, escape(ratios.get(f"length {length:,}", "–"))])
    header = ["length (tokens)", "batch size", *map(escape, models), f"{TRANSFORMER} / fastest rival"]
    return [
        f"Whole updates on {escape(speed['device'])} in {escape(speed['precision'])}, in target tokens per second "
        "(with as many source tokens beside them): the median and, in parentheses, the lowest and highest of the "
        "repeats. The models took turns, so that a slow moment of the machine meets all of them.",
        "![Training speed against length, a line for each model](speed.png)",
        table(header, rows),
        f"What the theory says, for a sequence of length n and vectors of width d:\n\n{TABLE_1}",
        "Few sequential operations let a device work on all positions at once, but the work of self-attention grows "
        "with the square of the length. Which of the two decides depends on the length, the width and the device.",
    ]


def _repeats(speeds: Sequence[float]) -> str:
    return f"{median(speeds):,.0f} ({min(speeds):,.0f} to {max(speeds):,.0f})"


def long_range_section(
    long_range: Mapping[str, Any] | None, styles: Mapping[str, SeriesStyle], folder: Path
) -> list[str]:
    """How far gradients reach, and how accuracy falls with the distance."""
    if not long_range:
        return [NOT_MEASURED]
    return [
        "### How far a gradient reaches",
        *_gradients(long_range["gradients"], styles, folder),
        "### Tasks that need the distance",
        *_tasks(long_range, styles, folder),
    ]


def _gradients(gradients: Sequence[Mapping[str, Any]], styles: Mapping[str, SeriesStyle], folder: Path) -> list[str]:
    if not gradients:
        return [NOT_MEASURED]
    plot_gradients(gradients, styles).savefig(folder / "gradients.png")
    farthest = min(len(run["norms"]) for run in gradients) - 1
    moments = [when for when in STAGES if any(run["when"] == when for run in gradients)]
    rows = []
    for model in styles:
        cells = []
        for when in moments:
            left = [relative_norms(run)[farthest] for run in gradients if run["model"] == model and run["when"] == when]
            cells.append(f"{median(left):.2g} ({min(left):.2g} to {max(left):.2g})" if left else "–")
        if any(cell != "–" for cell in cells):
            rows.append([escape(model), *cells])
    return [
        "The norm of the gradient of the encoder's last output with respect to an input so many steps back, over its "
        "norm at 0 steps back. Attention of the decoder is another, shorter way, which this does not measure. Median "
        "over the seeds, with a band from the lowest to the highest.",
        "![What is left of the gradient against steps back, before and after training](gradients.png)",
        f"Left {farthest:,} steps back, with the lowest and highest seed in parentheses:",
        table(["model", *(STAGES[when] for when in moments)], rows),
    ]


def _tasks(long_range: Mapping[str, Any], styles: Mapping[str, SeriesStyle], folder: Path) -> list[str]:
    runs, chance = long_range["tasks"], long_range["chance"]
    if not runs:
        return [NOT_MEASURED]
    plot_long_range(runs, chance, styles).savefig(folder / "long_range.png")
    blocks = [
        "The models train on distances up to the dashed line and are tested beyond it, too, on random sequences of "
        "other seeds; the shortest of them are so few that training has seen them. Mean over the seeds, with a band "
        "from the lowest to the highest.",
        "![Accuracy against distance, a panel for each task](long_range.png)",
    ]
    for task in dict.fromkeys(run["task"] for run in runs):
        of_task = [run for run in runs if run["task"] == task]
        guessing = f"; guessing gives {100 * chance[task]:.1f}%"
        blocks.append(
            f"**{TASK_TITLES[task]}**, accuracy in % by distance in {DISTANCE_UNITS[task]}{guessing}. In parentheses "
            "the lowest and highest seed."
        )
        blocks.append(_task_table(of_task, [model for model in styles if any(r["model"] == model for r in of_task)]))
    return blocks


def _task_table(runs: Sequence[Mapping[str, Any]], models: Sequence[str]) -> str:
    distances = sorted({int(distance) for run in runs for distance in run["accuracy"]})
    limits = {run["trained_at"] for run in runs}
    spreads = {d: accuracy_spreads([run for run in runs if str(d) in run["accuracy"]], [d]) for d in distances}
    rows = []
    for model in models:
        of_model = [run for run in runs if run["model"] == model]
        accuracies = [
            f"{100 * s.centre:.1f} ({100 * s.lowest:.1f} to {100 * s.highest:.1f})" if s else "–"
            for s in (spreads[distance].get(model) for distance in distances)
        ]
        minutes = median(run["seconds"] for run in of_model) / 60
        updates = median(run["updates"] for run in of_model)
        rows.append([escape(model), *accuracies, str(len(of_model)), f"{updates:,.0f}", f"{minutes:.1f}"])
    trained = [f"{d:,} (longest in training)" if d in limits else f"{d:,}" for d in distances]
    return table(["model", *trained, "seeds", "updates (median)", "minutes (median)"], rows)


def quality_section(
    quality: Sequence[Mapping[str, Any]] | None, styles: Mapping[str, SeriesStyle], folder: Path
) -> list[str]:
    """Scores by task and budget, by length of the source, and a few outputs."""
    if not quality:
        return [NOT_MEASURED]
    blocks = [
        f"The difference is the model's score minus that of the {TRANSFORMER}; it counts if p < {SIGNIFICANT} (paired "
        "bootstrap over the test sentences). In parentheses: the 95% interval of the score.",
    ]
    for task in quality:
        blocks += _quality_of_task(task, styles)
    blocks.append("### By length of the source")
    with_plot = [task for task in quality if any(result["budget"] == BUDGET_OF_THE_PLOT for result in task["budgets"])]
    if not with_plot:
        return [*blocks, f"Not measured at {BUDGET_OF_THE_PLOT}."]
    plot_quality_by_length(with_plot, BUDGET_OF_THE_PLOT, styles).savefig(folder / "quality_by_length.png")
    blocks.append("![Scores by length of the source, a bar for each model](quality_by_length.png)")
    for task in with_plot:
        (result,) = (result for result in task["budgets"] if result["budget"] == BUDGET_OF_THE_PLOT)
        models = [model for model in styles if model in result["models"]]
        rows = [
            [
                escape(row["bucket"]),
                f"{row['sentences']:,}",
                *(f"{row['scores'][model]:.1f}" if model in row["scores"] else "–" for model in models),
            ]
            for row in result["by_length"]
        ]
        blocks.append(f"**{escape(task['task'])}**, {BUDGET_OF_THE_PLOT}, {_scale(task)}:")
        blocks.append(table(["source tokens", "sentences", *map(escape, models)], rows))
    return blocks


def _scale(task: Mapping[str, Any]) -> str:
    better = "higher" if task["higher_is_better"] else "lower"
    return f"{escape(task['metric'])} in {escape(task['unit'])}, {better} is better"


def _quality_of_task(task: Mapping[str, Any], styles: Mapping[str, SeriesStyle]) -> list[str]:
    signature = f" Signature: `{task['signature']}`." if task["signature"] else ""
    blocks = [
        f"### {escape(task['task'])}",
        f"{_scale(task)}; {task['sentences']:,} test sentences, a vocabulary of {task['vocab_size']:,}.{signature}",
    ]
    for result in task["budgets"]:
        paired = {pair["model"]: pair for pair in result["paired"] if pair["baseline"] == TRANSFORMER}
        rows = []
        for model in (model for model in styles if model in result["models"]):
            facts, pair = result["models"][model], paired.get(model)
            rows.append(
                [
                    escape(model),
                    f"{facts['score']:.1f} ({facts['interval'][0]:.1f} to {facts['interval'][1]:.1f})",
                    f"{pair['difference']:+.1f}, {p_text(pair['p_value'])}" if pair else "–",
                    f"{facts['updates']:,}",
                    f"{facts['epochs']:.1f}",
                    f"{facts['training_seconds'] / 60:.1f}",
                    f"{facts['target_tokens_per_second']:,.0f}",
                ]
            )
        header = [
            "model",
            escape(task["metric"]),
            f"difference to {TRANSFORMER}",
            "updates",
            "epochs",
            "minutes",
            "target tokens/s",
        ]
        blocks.append(f"**{escape(result['budget'].capitalize())}** ({escape(result['amount'])}):")
        blocks.append(table(header, rows))
    last = task["budgets"][-1]
    if last["examples"]:
        blocks.append(f"What the models say at {escape(last['budget'])}:")
        blocks += [_example(example, styles) for example in last["examples"][:EXAMPLES]]
    return blocks


def _example(example: Mapping[str, Any], styles: Mapping[str, SeriesStyle]) -> str:
    texts = {"source": example["source"], "reference": example["reference"]}
    texts |= {model: example["outputs"][model] for model in styles if model in example["outputs"]}
    return table(["", "text"], [[escape(name), escape(cut(text))] for name, text in texts.items()])
