# SPDX-License-Identifier: Apache-2.0
"""Training curves: loss, perplexity, BLEU, learning rate and speed against the updates."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from vanilla_transformer.visualization.fonts import fonts_for
from vanilla_transformer.visualization.run_history import RunHistory
from vanilla_transformer.visualization.style import (
    FONT_SIZE,
    REFERENCE_LINE,
    SeriesStyle,
    empty_figure,
    label_axes,
    series_styles,
    set_log_yscale,
)

# Title of each panel → the tags drawn in it.
PANELS = {
    "loss (nats per target token)": ("train/loss", "validation/loss"),
    "perplexity (per target token)": ("train/perplexity", "validation/perplexity"),
    "BLEU on the validation sentences": ("validation/bleu",),
    "learning rate": ("train/learning_rate",),
    "speed (target tokens/s)": ("train/target_tokens_per_second",),
}
TRAINING_LINE: dict[str, Any] = {"linewidth": 1.8, "alpha": 0.55}
RATE_LINE: dict[str, Any] = {"linewidth": 6, "alpha": 0.55}  # wide enough to be seen on both sides of the formula
FORMULA_LINE: dict[str, Any] = REFERENCE_LINE | {"zorder": 4}  # on top of the measured rate
VALIDATION_LINE: dict[str, Any] = {"color": "0.35", "marker": "o", "linewidth": 2.8, "markersize": 9}

Formula = tuple[Sequence[int], Sequence[float]]  # updates, and the learning rate at each


def plot_curves(histories: Sequence[RunHistory], formulas: Mapping[str, Formula]) -> Figure:
    """A panel for each scalar that any of the runs logged; a run has one colour and one marker in all of them.

    Args:
        formulas: name of a run → equation 3 of the paper, drawn dashed on top of the learning rate.

    Raises:
        ValueError: no run, two of one name, or more than twenty.
    """
    if not histories:
        raise ValueError("there is no run to draw")
    styles = series_styles([history.name for history in histories], "runs")
    logged = {tag for history in histories for tag in history.scalars}
    panels = {title: tags for title, tags in PANELS.items() if logged & set(tags)}
    columns = min(2, len(panels))
    rows = -(-(len(panels) + 1) // columns)  # one place is for the legend
    figure, places = empty_figure(rows, columns, (7.5 * columns, 4.8 * rows))
    figure.set_layout_engine("constrained", hspace=0.06)
    last = max(updates[-1] for history in histories for updates, _ in history.scalars.values() if updates)
    for axes, (title, tags) in zip(places, panels.items(), strict=False):
        for history in histories:
            for tag in tags:
                _plot_scalar(axes, *history.scalars.get(tag, ([], [])), styles[history.name], tag)
            if title == "learning rate" and history.name in formulas:
                axes.plot(*formulas[history.name], linestyle="--", **FORMULA_LINE)
        _format_axes(axes, title)
        axes.set_xlim(0, 1.03 * last)
    for axes in places[len(panels) :]:
        axes.set_axis_off()
    _add_legend(places[len(panels)], styles, bool(formulas))
    return figure


def _plot_scalar(axes: Axes, updates: Sequence[int], values: Sequence[float], style: SeriesStyle, tag: str) -> None:
    if tag.startswith("validation"):
        axes.plot(updates, values, markevery=max(1, len(updates) // 12), zorder=style.zorder, **style.line)
    else:
        line = RATE_LINE if tag == "train/learning_rate" else TRAINING_LINE
        axes.plot(updates, values, color=style.colour, linestyle=style.dash, zorder=style.zorder, **line)


def _format_axes(axes: Axes, title: str) -> None:
    label_axes(axes, title, "updates")
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    if title.startswith("perplexity"):
        set_log_yscale(axes, (1, 2, 5), "{x:,g}")
    if title.startswith("speed"):
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter("{x:,.0f}")


def _add_legend(axes: Axes, styles: Mapping[str, SeriesStyle], has_formula: bool) -> None:
    lines = {name: Line2D([], [], **style.line) for name, style in styles.items()}
    names = [*lines, "training", "validation"]
    handles = [*lines.values(), Line2D([], [], color="0.35", **TRAINING_LINE), Line2D([], [], **VALIDATION_LINE)]
    if has_formula:
        names.append("the paper's formula (equation 3)")
        handles.append(Line2D([], [], linestyle="--", **REFERENCE_LINE))
    legend = axes.legend(handles, names, loc="center left", frameon=False)
    for text in legend.get_texts():
        text.set(fontsize=FONT_SIZE, fontfamily=fonts_for(names), parse_math=False)
