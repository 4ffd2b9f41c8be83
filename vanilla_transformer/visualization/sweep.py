# SPDX-License-Identifier: Apache-2.0
"""The plots of a sweep: scores at each rung, and scores against each value.

`vanilla_transformer.tuning.report` documents the schema of the results.
"""

import json
from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullLocator

from vanilla_transformer.visualization.style import (
    FONT_SIZE,
    REFERENCE_LINE,
    SeriesStyle,
    empty_figure,
    label_axes,
)

Styles = Mapping[str, SeriesStyle]
OTHER: dict[str, Any] = {"color": "0.72", "linewidth": 1.5, "marker": "o", "markersize": 5, "zorder": 1}
OWN: dict[str, Any] = REFERENCE_LINE | {"linestyle": "--", "marker": "s", "markersize": 8, "zorder": 3}
POINTS: dict[str, Any] = {"linestyle": "", "markersize": 9, "alpha": 0.75}
COLUMNS = 3  # of `plot_values`


def plot_rungs(results: Mapping[str, Any], styles: Styles) -> Figure:
    """The score of each trial against the budgets of the rungs, a panel for each run."""
    runs, budgets = results["runs"], results["budgets"]
    figure, panels = empty_figure(1, len(runs), (4 + 5.5 * len(runs), 6), sharey=True)
    for axes, (name, run) in zip(panels, runs.items(), strict=True):
        best: dict[str, Any] = styles[name].line | {"zorder": 4}
        for trial in run["trials"]:
            scores = [outcome["score"] for outcome in trial["rungs"] if outcome["score"] is not None]
            line = best if trial["number"] == run["best"] else OWN if trial["number"] == 0 else OTHER
            axes.plot(budgets[: len(scores)], scores, **line)
        axes.set_xscale("log")
        axes.set_xticks(budgets, [f"{budget:,.3g}" for budget in budgets])
        axes.xaxis.set_minor_locator(NullLocator())
        label_axes(axes, name, f"budget ({results['budget_unit']})")
    _label_scores(panels[0], results)
    lines = {f"best of {name}": Line2D([], [], **styles[name].line) for name in runs}
    lines |= {"the run's own settings": Line2D([], [], **OWN), "other trials": Line2D([], [], **OTHER)}
    figure.legend(lines.values(), lines, loc="outside right center", frameon=False, fontsize=FONT_SIZE)
    return figure


def plot_values(results: Mapping[str, Any], styles: Styles) -> Figure:
    """The scores of the first rung against each value, a panel for each key; lists are evenly spaced."""
    runs = results["runs"]
    keys = list(dict.fromkeys(key for run in runs.values() for key in run["trials"][0]["settings"]))
    columns = min(COLUMNS, len(keys))
    rows = -(-len(keys) // columns)
    figure, panels = empty_figure(rows, columns, (2 + 5.5 * columns, 1 + 4.5 * rows), sharey=True)
    for axes, key in zip(panels, keys, strict=False):
        tried = {name: _tried(run, key) for name, run in runs.items()}
        values = {value for points in tried.values() for value, _ in points}
        is_list = len(values) <= 8 or not all(isinstance(value, int | float) for value in values)
        places = {value: place for place, value in enumerate(sorted(values, key=_order))}
        for number, (name, points) in enumerate(tried.items()):
            offset = 0.16 * (number - (len(runs) - 1) / 2) if is_list else 0.0  # beside each other
            xs = [places[value] + offset if is_list else value for value, _ in points]
            scores = [score for _, score in points]
            axes.plot(xs, scores, color=styles[name].colour, marker=styles[name].marker, **POINTS)
        if is_list:
            axes.set_xticks(list(places.values()), [value_text(value) for value in places])
            axes.set_xlim(-0.5, len(places) - 0.5)
        elif min(values) > 0 and max(values) > 8 * min(values):
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_minor_locator(NullLocator())
        label_axes(axes, key)
    for axes in panels[len(keys) :]:
        axes.set_axis_off()
    for axes in panels[::columns]:
        _label_scores(axes, results)
    lines = {name: Line2D([], [], **POINTS, color=styles[name].colour, marker=styles[name].marker) for name in runs}
    figure.legend(lines.values(), lines, loc="outside right center", frameon=False, fontsize=FONT_SIZE)
    return figure


def _tried(run: Mapping[str, Any], key: str) -> list[tuple[Any, float]]:
    """(value, score) of the trials that have a score in the first rung, where the run has the key."""
    trials = [trial for trial in run["trials"] if key in trial["settings"] and trial["rungs"][0]["score"] is not None]
    return [(trial["settings"][key], trial["rungs"][0]["score"]) for trial in trials]


def _order(value: Any) -> tuple[bool, Any]:
    is_number = isinstance(value, int | float)
    return not is_number, value if is_number else str(value)


def value_text(value: Any) -> str:
    """A value as in YAML, a float with three digits."""
    return f"{value:.3g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)


def _label_scores(axes: Axes, results: Mapping[str, Any]) -> None:
    unit = f" ({results['unit']})" if results["unit"] else ""
    label_axes(axes, y=f"{results['metric']}{unit} on validation data")
