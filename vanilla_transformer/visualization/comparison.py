# SPDX-License-Identifier: Apache-2.0
"""The plots of a comparison: each model has one style in all of them.

`vanilla_transformer.comparison.report` documents the schema of the results.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import mean, median
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import NullLocator

from vanilla_transformer.visualization.style import (
    FONT_SIZE,
    REFERENCE_LINE,
    SeriesStyle,
    empty_figure,
    label_axes,
    set_log_yscale,
)

TASK_TITLES = {"copy": "copy", "recall": "associative recall", "parity": "parity (state tracking)"}
DISTANCE_UNITS = {"copy": "symbols", "recall": "pairs", "parity": "bits"}
STAGES = {"initialisation": "at initialisation", "after training": "after training"}
COSTS = {"minutes": "training (minutes)", "updates": "training (updates)"}  # of quality, and how the axis is named
# A ring around the point, so that the curves stay visible in it.
CROSSING: dict[str, Any] = {"marker": "o", "markersize": 20, "markerfacecolor": "none", "markeredgecolor": "0.15"}
CROSSING |= {"markeredgewidth": 2.5, "linestyle": "none", "zorder": 4}

# Smaller norms are drawn here: a float32 sum keeps seven digits, so no optimizer sees the difference, and a scale
# down to 1e-40 would hide the differences that it does see.
MIN_NORM = 1e-12

Styles = Mapping[str, SeriesStyle]
Rows = Sequence[Mapping[str, Any]]


def relative_norms(run: Mapping[str, Any]) -> list[float]:
    """The gradient norm at each distance over the norm at distance 0.

    Raises:
        ValueError: the norm at distance 0 is not positive.
    """
    nearest = run["norms"][0]
    if not nearest > 0:
        raise ValueError(
            f"{run['model']}, seed {run['seed']}, {run['when']}: the gradient's norm at 0 steps back must be positive, "
            f"not {nearest}"
        )
    return [norm / nearest for norm in run["norms"]]


def training_rows(speed: Mapping[str, Any]) -> tuple[Rows, Rows]:
    """The rows in the setting of training: the largest batch of each length, and batches of one sequence."""
    rows = [row for row in speed["rows"] if speed["training"].items() <= row.items()]
    largest = {row["length"]: row["batch_size"] for row in sorted(rows, key=lambda row: row["batch_size"])}
    whole = [row for row in rows if row["batch_size"] == largest[row["length"]]]
    return whole, [row for row in rows if row["batch_size"] == 1]


def plot_speed(speed: Mapping[str, Any], styles: Styles) -> Figure:
    """Training speed (tokens/s) against length (tokens), both logarithmic: the median, and a band over the repeats.

    All in the setting of training; a panel for whole batches, and one for batches of one sequence.
    """
    figure, panels = empty_figure(1, 2, (16, 6), sharey=True)
    whole, alone = training_rows(speed)
    titles = f"whole batches on {speed['device']}, {speed['training']['precision']}", "one sequence at a time"
    for axes, rows, title in zip(panels, (whole, alone), titles, strict=True):
        for model in models_in_order(styles, rows):
            measured = sorted((row["length"], row["tokens_per_second"]) for row in rows if row["model"] == model)
            lengths, repeats = zip(*measured, strict=True)
            _plot_band(axes, styles[model], lengths, repeats, median)
        _set_log_xscale(axes, {row["length"] for row in rows})
        set_log_yscale(axes, (1, 2, 3, 5, 7), "{x:,.0f}")
        label_axes(axes, title, "length of the sequences (tokens)")
    label_axes(panels[0], y="training speed (tokens/s)")
    longest = max(row["length"] for row in alone or whole)
    ends = {row["model"]: median(row["tokens_per_second"]) for row in alone or whole if row["length"] == longest}
    _add_legend(figure, styles, whole, ends)
    return figure


def plot_gradients(gradients: Rows, styles: Styles) -> Figure:
    """The relative gradient norm against the distance: the median, and a band over the seeds."""
    stages = [when for when in STAGES if any(run["when"] == when for run in gradients)]
    figure, panels = empty_figure(1, len(stages), (5 + 5 * len(stages), 6), sharey=True)
    for axes, when in zip(panels, stages, strict=True):
        for model in models_in_order(styles, gradients):
            runs = [relative_norms(run) for run in gradients if run["model"] == model and run["when"] == when]
            norms = [[max(norm, MIN_NORM) for norm in at_distance] for at_distance in zip(*runs, strict=True)]
            _plot_band(axes, styles[model], range(len(norms)), norms, median)
        label_axes(axes, STAGES[when], "steps back (positions)")
        axes.set_yscale("log")
    label = "gradient norm / norm at 0 steps back"
    if any(norm < MIN_NORM for run in gradients for norm in relative_norms(run)):
        label += "\n(values below $10^{-12}$ are drawn there)"
    label_axes(panels[0], y=label)
    ends = {run["model"]: relative_norms(run)[-1] for run in gradients if run["when"] == stages[-1]}
    _add_legend(figure, styles, gradients, ends)
    return figure


def plot_long_range(runs: Rows, chance: Mapping[str, float], styles: Styles) -> Figure:
    """Accuracy (%) against distance, a panel for each task: the mean, and a band over the seeds.

    Args:
        chance: accuracy of guessing, between 0 and 1, for each task.
    """
    tasks = list(dict.fromkeys(run["task"] for run in runs))
    figure, panels = empty_figure(1, len(tasks), (4 + 4.2 * len(tasks), 6), sharey=True)
    for axes, task in zip(panels, tasks, strict=True):
        task_runs = [run for run in runs if run["task"] == task]
        for model in models_in_order(styles, task_runs):
            seeds = [run["accuracy"] for run in task_runs if run["model"] == model]
            distances = sorted(map(int, seeds[0]))
            accuracies = [[100 * accuracy[str(distance)] for accuracy in seeds] for distance in distances]
            _plot_band(axes, styles[model], distances, accuracies, mean)
        _set_log_xscale(axes, {int(distance) for run in task_runs for distance in run["accuracy"]})
        axes.set_ylim(-4, 104)
        for trained_at in sorted({run["trained_at"] for run in task_runs}):
            axes.axvline(trained_at, linestyle="--", **REFERENCE_LINE)
        axes.axhline(100 * chance[task], linestyle=":", **REFERENCE_LINE)
        label_axes(axes, TASK_TITLES[task], f"distance ({DISTANCE_UNITS[task]})")
    label_axes(panels[0], y="accuracy (%)")
    references = {
        "length in training": Line2D([], [], linestyle="--", **REFERENCE_LINE),
        "guessing": Line2D([], [], linestyle=":", **REFERENCE_LINE),
    }
    _add_legend(figure, styles, runs, {}, references)  # in the order of the models: no order fits all panels
    return figure


def learning_curve(task: Mapping[str, Any], model: str, cost: str) -> list[tuple[float, float, tuple[float, float]]]:
    """(cost, score, interval of the score) of each of the model's runs, the lowest cost first.

    A run that ends by time costs its budget: a last update, longer in one model than in another, is no difference.
    """
    points = []
    for result in task["budgets"]:
        facts = result["models"][model]
        minutes = facts["training_seconds"] / 60 if result["minutes"] is None else result["minutes"]
        cost_of_run = {"minutes": minutes, "updates": facts["updates"]}[cost]
        points.append((cost_of_run, facts["score"], tuple(facts["interval"])))
    return sorted(points)


def plot_learning_curves(quality: Rows, styles: Styles) -> Figure:
    """Scores against minutes and against updates, both logarithmic, with 95% intervals: a row for each task."""
    figure, panels = empty_figure(len(quality), len(COSTS), (15, 1 + 5 * len(quality)))
    ends: dict[str, float] = {}
    for row, task in enumerate(quality):
        models = [model for model in styles if model in task["budgets"][0]["models"]]
        better = "higher" if task["higher_is_better"] else "lower"
        for (cost, axis), axes in zip(COSTS.items(), panels[row * len(COSTS) :], strict=False):
            measured = set()
            for model in models:
                costs, scores, intervals = zip(*learning_curve(task, model, cost), strict=True)
                low, high = zip(*intervals, strict=True)
                style = styles[model]
                axes.plot(costs, scores, zorder=style.zorder, **style.line)
                axes.fill_between(costs, low, high, color=style.colour, alpha=0.22, linewidth=0)
                axes.vlines(costs, low, high, color=style.colour, linewidth=1.5)  # the band of one point is invisible
                measured |= {*costs}
                ends.setdefault(model, scores[-1])
            for found in task["crossings"]:
                if found["cost"] == cost:
                    for crossing in found["crossings"]:
                        axes.plot(crossing["at"], crossing["score"], **CROSSING)
            _set_log_xscale(axes, measured)
            label_axes(axes, f"{task['task']}: {better} is better", axis)
        label_axes(panels[row * len(COSTS)], y=f"{task['metric']} ({task['unit']})")
    has_crossing = any(found["crossings"] for task in quality for found in task["crossings"])
    references = {"crossing": Line2D([], [], **CROSSING)} if has_crossing else {}
    _add_legend(figure, styles, [{"model": model} for model in ends], ends, references)
    return figure


def plot_quality_by_length(quality: Rows, styles: Styles) -> Figure:
    """Scores under the last budget by length of the source (tokens): a panel for each task, a bar for each model."""
    chosen = [(task, task["budgets"][-1]) for task in quality]
    figure, panels = empty_figure(len(chosen), 1, (13, 1 + 4.5 * len(chosen)))
    for axes, (task, result) in zip(panels, chosen, strict=True):
        models = [model for model in styles if model in result["models"]]
        width = 0.84 / len(models)
        for place, model in enumerate(models):
            scores = {x: row["scores"][model] for x, row in enumerate(result["by_length"]) if model in row["scores"]}
            offset = (place - (len(models) - 1) / 2) * width
            axes.bar([x + offset for x in scores], list(scores.values()), width * 0.92, **styles[model].bar)
        buckets = [f"{row['bucket']}\n({row['sentences']:,})" for row in result["by_length"]]
        axes.set_xticks(range(len(buckets)), buckets)
        axes.grid(visible=False, axis="x")
        better = "higher" if task["higher_is_better"] else "lower"
        title = f"{task['task']}, {result['budget']} ({result['amount']}): {better} is better"
        label_axes(axes, title, y=f"{task['metric']} ({task['unit']})")
    label_axes(panels[-1], x="length of the source in tokens (number of sentences)")
    drawn = {model: Patch(**styles[model].bar) for model in styles if any(model in r["models"] for _, r in chosen)}
    figure.legend(drawn.values(), drawn, loc="outside right center", frameon=False, fontsize=FONT_SIZE)
    return figure


def models_in_order(styles: Styles, rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """The models that have a row, in the order of their styles; ValueError if one has no style."""
    return sorted({row["model"] for row in rows}, key=list(styles).index)


def _plot_band(
    axes: Axes,
    style: SeriesStyle,
    xs: Sequence[int],
    values: Sequence[Sequence[float]],
    average: Callable[[Sequence[float]], float],
) -> None:
    """The average of the values at each x, and a band from their minimum to their maximum."""
    averages = [average(at_x) for at_x in values]
    axes.plot(xs, averages, markevery=max(1, len(xs) // 8), zorder=style.zorder, **style.line)
    low, high = [min(at_x) for at_x in values], [max(at_x) for at_x in values]
    axes.fill_between(xs, low, high, color=style.colour, alpha=0.22, linewidth=0, zorder=style.zorder - 1)


def _set_log_xscale(axes: Axes, measured: set[float]) -> None:
    """A logarithmic axis whose ticks are measured values, as many as there is room for."""
    ticks = []
    for value in sorted(measured):
        if not ticks or value >= 1.8 * ticks[-1]:
            ticks.append(value)
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [f"{tick:.0f}" if tick >= 100 else f"{tick:.3g}" for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())


def _add_legend(
    figure: Figure, styles: Styles, rows: Rows, ends: Mapping[str, float], references: Mapping[str, Line2D] = {}
) -> None:
    """The names beside the last panel, the model whose line ends highest first."""
    models = sorted(models_in_order(styles, rows), key=lambda model: -ends.get(model, float("-inf")))
    lines = {**{model: Line2D([], [], **styles[model].line) for model in models}, **references}
    figure.legend(lines.values(), lines, loc="outside right center", frameon=False, fontsize=FONT_SIZE)
