# SPDX-License-Identifier: Apache-2.0
"""The plots of a comparison. A model has one colour and one marker in all of them.

The schema of the results is told by `vanilla_transformer.comparison.report`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, median
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from vanilla_transformer.visualization.style import COLOURS, FONT_SIZE, GIVEN, MARKERS, empty_figure

TASK_TITLES = {"copy": "copy", "recall": "associative recall", "parity": "parity (state tracking)"}
DISTANCE_UNITS = {"copy": "symbols", "recall": "pairs", "parity": "bits"}
MOMENTS = {"initialisation": "at initialisation", "after training": "after training"}

# What is smaller is drawn here: a float32 sum keeps seven digits, so no optimizer sees the difference, and a scale
# down to 1e-40 would hide the differences that it does see.
SMALLEST_DRAWN_NORM = 1e-12


@dataclass(frozen=True)
class ModelStyle:
    """How a model looks: lines have the marker and the dash, bars the hatch. `layer` puts the first model on top."""

    colour: str
    marker: str
    dash: Literal["-", "--"]
    hatch: str
    layer: float


def model_styles(models: Sequence[str]) -> dict[str, ModelStyle]:
    """One look for each model, by its place in the list; the second ten are dashed.

    Raises:
        ValueError: more than twenty models, or one named twice.
    """
    if len(set(models)) != len(models):
        raise ValueError(f"models {list(models)} must have different names")
    if len(models) > 2 * len(COLOURS):
        raise ValueError(f"{len(models)} models cannot be told apart in a plot: {2 * len(COLOURS)} at most")
    styles = {}
    for place, model in enumerate(models):
        again, colour = divmod(place, len(COLOURS))
        dash, hatch = ("--", "//") if again else ("-", "")
        styles[model] = ModelStyle(COLOURS[colour], MARKERS[colour], dash, hatch, layer=3 - place / 100)
    return styles


def relative_norms(run: Mapping[str, Any]) -> list[float]:
    """The gradient's norm at each number of steps back over that at 0.

    Raises:
        ValueError: the norm at 0 steps back is not positive.
    """
    nearest = run["norms"][0]
    if not nearest > 0:
        raise ValueError(
            f"{run['model']}, seed {run['seed']}, {run['when']}: the gradient's norm at 0 steps back must be positive, "
            f"not {nearest}"
        )
    return [norm / nearest for norm in run["norms"]]


def plot_speed(speed: Mapping[str, Any], styles: Mapping[str, ModelStyle]) -> Figure:
    """Training speed (tokens per second) against length (tokens), both logarithmic: median, and all the repeats."""
    figure, (axes,) = empty_figure(1, 1, (11, 6))
    for model in _in_order(styles, speed["rows"]):
        rows = sorted((row for row in speed["rows"] if row["model"] == model), key=lambda row: row["length"])
        repeats = [row["tokens_per_second"] for row in rows]
        _line(axes, styles[model], [row["length"] for row in rows], repeats, median)
    _scale_x(axes, {row["length"] for row in speed["rows"]})
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5, 7)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_ylabel("training speed (tokens/s)", fontsize=FONT_SIZE)
    axes.set_xlabel("length of the sequences (tokens)", fontsize=FONT_SIZE)
    axes.set_title(f"Training speed on {speed['device']}, {speed['precision']}", fontsize=FONT_SIZE)
    longest = max(row["length"] for row in speed["rows"])
    _name_lines(
        figure,
        styles,
        speed["rows"],
        {row["model"]: median(row["tokens_per_second"]) for row in speed["rows"] if row["length"] == longest},
    )
    return figure


def plot_gradients(gradients: Sequence[Mapping[str, Any]], styles: Mapping[str, ModelStyle]) -> Figure:
    """The gradient's norm, relative to that at 0 steps back: median over the seeds, and all of them."""
    moments = [when for when in MOMENTS if any(run["when"] == when for run in gradients)]
    figure, panels = empty_figure(1, len(moments), (5 + 5 * len(moments), 6), sharey=True)
    for axes, when in zip(panels, moments, strict=True):
        for model in _in_order(styles, gradients):
            runs = [relative_norms(run) for run in gradients if run["model"] == model and run["when"] == when]
            drawn = [[max(norm, SMALLEST_DRAWN_NORM) for norm in at_once] for at_once in zip(*runs, strict=True)]
            _line(axes, styles[model], range(len(drawn)), drawn, median)
        axes.set_title(MOMENTS[when], fontsize=FONT_SIZE)
        axes.set_xlabel("steps back (positions)", fontsize=FONT_SIZE)
        axes.set_yscale("log")
    label = "gradient norm / norm at 0 steps back"
    if any(norm < SMALLEST_DRAWN_NORM for run in gradients for norm in relative_norms(run)):
        label += "\n(what is below $10^{-12}$ is drawn there)"
    panels[0].set_ylabel(label, fontsize=FONT_SIZE)
    last = [run for run in gradients if run["when"] == moments[-1]]
    _name_lines(figure, styles, gradients, {run["model"]: relative_norms(run)[-1] for run in last})
    return figure


def plot_long_range(
    runs: Sequence[Mapping[str, Any]], chance: Mapping[str, float], styles: Mapping[str, ModelStyle]
) -> Figure:
    """Accuracy (%) against distance (symbols, pairs or bits), a panel for each task: mean over seeds, and all of them.

    Args:
        chance: the accuracy, between 0 and 1, of guessing at each task.
    """
    tasks = list(dict.fromkeys(run["task"] for run in runs))
    figure, panels = empty_figure(1, len(tasks), (4 + 4.2 * len(tasks), 6), sharey=True)
    for axes, task in zip(panels, tasks, strict=True):
        of_task = [run for run in runs if run["task"] == task]
        for model in _in_order(styles, of_task):
            of_model = [run["accuracy"] for run in of_task if run["model"] == model]
            distances = sorted(map(int, of_model[0]))
            at_each = [[100 * accuracy[str(distance)] for accuracy in of_model] for distance in distances]
            _line(axes, styles[model], distances, at_each, mean)
        _scale_x(axes, {int(distance) for run in of_task for distance in run["accuracy"]})
        axes.set_ylim(-4, 104)
        for trained_at in sorted({run["trained_at"] for run in of_task}):
            axes.axvline(trained_at, linestyle="--", **GIVEN)
        axes.axhline(100 * chance[task], linestyle=":", **GIVEN)
        axes.set_title(TASK_TITLES[task], fontsize=FONT_SIZE)
        axes.set_xlabel(f"distance ({DISTANCE_UNITS[task]})", fontsize=FONT_SIZE)
    panels[0].set_ylabel("accuracy (%)", fontsize=FONT_SIZE)
    marks = [("longest in training", Line2D([], [], linestyle="--", **GIVEN))]
    marks.append(("guessing", Line2D([], [], linestyle=":", **GIVEN)))
    _name_lines(figure, styles, runs, {}, marks)  # in the order of the models: the panels end in different orders
    return figure


def plot_quality_by_length(
    quality: Sequence[Mapping[str, Any]], budget: str, styles: Mapping[str, ModelStyle]
) -> Figure:
    """Scores under one budget by length of the source (tokens), a panel for each task and a bar for each model.

    Raises:
        ValueError: no task has the budget.
    """
    chosen = [(task, result) for task in quality for result in task["budgets"] if result["budget"] == budget]
    if not chosen:
        raise ValueError(f"no task was measured at {budget}")
    models = [model for model in styles if any(model in result["models"] for _, result in chosen)]
    figure, panels = empty_figure(len(chosen), 1, (13, 1 + 4.5 * len(chosen)))
    for axes, (task, result) in zip(panels, chosen, strict=True):
        present = [model for model in models if model in result["models"]]
        width = 0.84 / len(present)
        for place, model in enumerate(present):
            scored = [(x, row["scores"][model]) for x, row in enumerate(result["by_length"]) if model in row["scores"]]
            axes.bar(
                [x + (place - (len(present) - 1) / 2) * width for x, _ in scored],
                [score for _, score in scored],
                width * 0.92,
                color=styles[model].colour,
                hatch=styles[model].hatch,
                edgecolor="white",
            )
        buckets = [f"{row['bucket']}\n({row['sentences']:,})" for row in result["by_length"]]
        axes.set_xticks(range(len(buckets)), buckets)
        axes.grid(visible=False, axis="x")
        better = "higher" if task["higher_is_better"] else "lower"
        axes.set_title(f"{task['task']}, {budget} ({result['amount']}): {better} is better", fontsize=FONT_SIZE)
        axes.set_ylabel(f"{task['metric']} ({task['unit']})", fontsize=FONT_SIZE)
    panels[-1].set_xlabel("length of the source in tokens (number of sentences)", fontsize=FONT_SIZE)
    patches = [Patch(facecolor=styles[m].colour, hatch=styles[m].hatch, edgecolor="white") for m in models]
    figure.legend(patches, models, loc="outside right center", frameon=False, fontsize=FONT_SIZE)
    return figure


def _in_order(styles: Mapping[str, ModelStyle], rows: Iterable[Mapping[str, Any]]) -> list[str]:
    present = {row["model"] for row in rows}
    if unknown := present - styles.keys():
        raise ValueError(f"no style for {sorted(unknown)}, only for {list(styles)}")
    return [model for model in styles if model in present]


def _line(axes: Axes, style: ModelStyle, x: Sequence[int], values: Sequence[Sequence[float]], centre) -> None:
    """The centre of the values at each x, and a band from their minimum to their maximum."""
    axes.plot(
        x,
        [centre(at_once) for at_once in values],
        color=style.colour,
        marker=style.marker,
        linestyle=style.dash,
        markevery=max(1, len(x) // 8),
        markersize=9,
        linewidth=2.8,
        zorder=style.layer,
    )
    lowest, highest = [min(at_once) for at_once in values], [max(at_once) for at_once in values]
    axes.fill_between(x, lowest, highest, color=style.colour, alpha=0.22, linewidth=0, zorder=style.layer - 1)


def _scale_x(axes: Axes, measured: set[int]) -> None:
    """A logarithmic axis whose ticks are among the measured values, as many as there is room for."""
    ticks = []
    for value in sorted(measured):
        if not ticks or value >= 1.8 * ticks[-1]:
            ticks.append(value)
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())


def _name_lines(
    figure: Figure,
    styles: Mapping[str, ModelStyle],
    rows: Iterable[Mapping[str, Any]],
    ends: Mapping[str, float],
    marks: Sequence[tuple[str, Line2D]] = (),
) -> None:
    """The names beside the last panel, the model whose line ends highest first."""
    models = sorted(_in_order(styles, rows), key=lambda model: -ends.get(model, float("-inf")))
    named = [
        (m, Line2D([], [], color=styles[m].colour, marker=styles[m].marker, linestyle=styles[m].dash)) for m in models
    ]
    for _, line in named:
        line.set(linewidth=2.8, markersize=9)
    names, lines = zip(*named, *marks, strict=True)
    figure.legend(lines, names, loc="outside right center", frameon=False, fontsize=FONT_SIZE)
