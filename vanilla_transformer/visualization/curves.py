# SPDX-License-Identifier: Apache-2.0
"""The course of training runs: loss, perplexity, BLEU, learning rate and speed against the updates."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from vanilla_transformer.visualization.comparison import ModelStyle, model_styles
from vanilla_transformer.visualization.fonts import fonts_for
from vanilla_transformer.visualization.run_history import RunHistory
from vanilla_transformer.visualization.style import FONT_SIZE, GIVEN, empty_figure

# Title and unit of each panel, and what is drawn in it: the tags, those of validation last.
PANELS = {
    "loss (nats per target token)": ("train/loss", "validation/loss"),
    "perplexity (per target token)": ("train/perplexity", "validation/perplexity"),
    "BLEU on the validation sentences": ("validation/bleu",),
    "learning rate": ("train/learning_rate",),
    "speed (target tokens/s)": ("train/target_tokens_per_second",),
}
LOGARITHMIC = {"perplexity (per target token)"}
TRAINING: dict[str, Any] = {"linewidth": 1.8, "alpha": 0.55}
RATE: dict[str, Any] = {"linewidth": 6, "alpha": 0.55}  # wide enough to be seen on both sides of the formula
FORMULA: dict[str, Any] = GIVEN | {"zorder": 4}
VALIDATION: dict[str, Any] = {"linewidth": 2.8, "markersize": 9}

# Updates and the rate at them.
Formula = tuple[Sequence[int], Sequence[float]]


def plot_curves(histories: Sequence[RunHistory], formulas: Mapping[str, Formula]) -> Figure:
    """A panel for each figure that any of the runs reported; a run has one colour and one marker in all of them.

    Args:
        formulas: equation 3 of the paper for the runs of these names, drawn dashed on top of their learning rates.

    Raises:
        ValueError: no run, two of one name, or more than twenty.
    """
    if not histories:
        raise ValueError("there is no run to draw")
    styles = model_styles([history.name for history in histories])
    reported = {tag for history in histories for tag in history.figures}
    panels = {title: tags for title, tags in PANELS.items() if reported & set(tags)}
    columns = min(2, len(panels))
    rows = -(-(len(panels) + 1) // columns)  # one place is for the names
    figure, places = empty_figure(rows, columns, (7.5 * columns, 4.8 * rows))
    figure.set_layout_engine("constrained", hspace=0.06)
    last = max(updates[-1] for history in histories for updates, _ in history.figures.values() if updates)
    for axes, (title, tags) in zip(places, panels.items(), strict=False):
        for history in histories:
            for tag in tags:
                _line(axes, history.figures.get(tag, ([], [])), styles[history.name], tag)
            if title == "learning rate" and history.name in formulas:
                axes.plot(*formulas[history.name], linestyle="--", **FORMULA)
        _describe(axes, title)
        axes.set_xlim(0, 1.03 * last)
    for axes in places[len(panels) :]:
        axes.set_axis_off()
    _name_lines(places[len(panels)], histories, styles, bool(formulas))
    return figure


def _line(axes: Axes, points: tuple[Sequence[int], Sequence[float]], style: ModelStyle, tag: str) -> None:
    updates, values = points
    looks: dict[str, Any] = RATE if tag == "train/learning_rate" else TRAINING
    if tag.startswith("validation"):
        looks = VALIDATION | {"marker": style.marker, "markevery": max(1, len(updates) // 12)}
    axes.plot(updates, values, color=style.colour, linestyle=style.dash, zorder=style.layer, **looks)


def _describe(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=FONT_SIZE)
    axes.set_xlabel("updates", fontsize=FONT_SIZE)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    if title in LOGARITHMIC:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        axes.yaxis.set_minor_locator(NullLocator())
    if title.startswith("speed"):
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def _name_lines(
    axes: Axes, histories: Sequence[RunHistory], styles: Mapping[str, ModelStyle], has_formula: bool
) -> None:
    lines = [
        Line2D([], [], color=styles[h.name].colour, linestyle=styles[h.name].dash, marker=styles[h.name].marker)
        for h in histories
    ]
    for line in lines:
        line.set(**VALIDATION)
    names = [history.name for history in histories]
    lines += [Line2D([], [], color="0.35", **TRAINING), Line2D([], [], color="0.35", marker="o", **VALIDATION)]
    names += ["training", "validation"]
    if has_formula:
        lines.append(Line2D([], [], linestyle="--", **GIVEN))
        names.append("the paper's formula (equation 3)")
    legend = axes.legend(lines, names, loc="center left", frameon=False)
    for text in legend.get_texts():
        text.set(fontsize=FONT_SIZE, fontfamily=fonts_for(names), parse_math=False)
