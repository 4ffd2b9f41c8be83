# SPDX-License-Identifier: Apache-2.0
"""Training curves: loss, perplexity, BLEU, learning rate and speed, from TensorBoard's event files."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from vanilla_transformer.visualization.fonts import fonts_for
from vanilla_transformer.visualization.style import (
    FONT_SIZE,
    REFERENCE_LINE,
    SeriesStyle,
    empty_figure,
    label_axes,
    model_styles,
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
LOGS = "logs"  # in the folder of a run

Curve = tuple[Sequence[int], Sequence[float]]  # updates, rising, and the value at each
History = Mapping[str, Curve]  # tag, such as "train/loss" → its finite values


def read_history(run: str | Path) -> History:
    """Read every scalar. Where a resumed run repeated an update, its last value counts.

    Raises:
        FileNotFoundError: no such folder, or it is not a run.
        ValueError: the run wrote no logs, or they are empty.
    """
    from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

    folder = Path(run)
    if not folder.is_dir():
        raise FileNotFoundError(f"run {folder} does not exist")
    if not (folder / "config.yaml").is_file():
        raise FileNotFoundError(f"{folder} is not the folder of a run: it has no config.yaml")
    values: dict[str, dict[int, tuple[float, float]]] = {}  # tag → update → wall time, value
    for directory in sorted({path.parent for path in (folder / LOGS).rglob("events.out.tfevents.*")}):
        events = EventAccumulator(str(directory), size_guidance={SCALARS: 0}).Reload()
        for tag in events.Tags()[SCALARS]:
            latest = values.setdefault(tag, {})
            for event in events.Scalars(tag):
                latest[event.step] = max(latest.get(event.step, (0.0, 0.0)), (event.wall_time, event.value))
    if not values:
        raise ValueError(
            f"run {folder} has no history in {folder / LOGS}: it has not come to its first report "
            "(training.log_every), or was trained without training.trackers=[tensorboard]"
        )
    history: dict[str, Curve] = {}
    for tag, latest in values.items():
        finite = [(update, value) for update, (_, value) in sorted(latest.items()) if math.isfinite(value)]
        history[tag] = [update for update, _ in finite], [value for _, value in finite]
    return history


def plot_curves(histories: Mapping[str, History], formulas: Mapping[str, Curve], kinds: Mapping[str, str]) -> Figure:
    """A panel for each scalar that any of the runs logged; a run has one colour and one marker in all of them.

    Args:
        histories: name of a run → what it logged.
        formulas: name of a run → equation 3 of the paper, drawn dashed on top of the learning rate.
        kinds: name of a run → the kind of its model, which decides the colour; see `model_styles`.

    Raises:
        ValueError: more than twenty runs.
    """
    styles = model_styles({name: kinds[name] for name in histories}, "runs")
    logged = {tag for history in histories.values() for tag in history}
    panels = {title: tags for title, tags in PANELS.items() if logged & set(tags)}
    columns = min(2, len(panels))
    rows = -(-(len(panels) + 1) // columns)  # one place is for the legend
    figure, places = empty_figure(rows, columns, (7.5 * columns, 4.8 * rows))
    figure.set_layout_engine("constrained", hspace=0.06)
    last = max(updates[-1] for history in histories.values() for updates, _ in history.values() if updates)
    for axes, (title, tags) in zip(places, panels.items(), strict=False):
        for name, history in histories.items():
            for tag in tags:
                _plot_scalar(axes, *history.get(tag, ([], [])), styles[name], tag, has_formula=name in formulas)
            if title == "learning rate" and name in formulas:
                axes.plot(*formulas[name], linestyle="--", **FORMULA_LINE)
        label_axes(axes, title, "updates")
        axes.set_xlim(0, 1.03 * last)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.xaxis.set_major_formatter("{x:,.0f}")
        if title.startswith("perplexity"):
            set_log_yscale(axes, (1, 2, 5), "{x:,g}")
        if title.startswith("speed"):
            axes.set_ylim(bottom=0)
            axes.yaxis.set_major_formatter("{x:,.0f}")
    for axes in places[len(panels) :]:
        axes.set_axis_off()
    _add_legend(places[len(panels)], styles, bool(formulas))
    return figure


def _plot_scalar(
    axes: Axes, updates: Sequence[int], values: Sequence[float], style: SeriesStyle, tag: str, has_formula: bool
) -> None:
    if tag.startswith("validation"):
        axes.plot(updates, values, markevery=max(1, len(updates) // 12), zorder=style.zorder, **style.line)
    else:
        line = RATE_LINE if tag == "train/learning_rate" and has_formula else TRAINING_LINE
        axes.plot(updates, values, color=style.colour, linestyle=style.dash, zorder=style.zorder, **line)


def _add_legend(axes: Axes, styles: Mapping[str, SeriesStyle], has_formula: bool) -> None:
    lines = {name: Line2D([], [], **style.line) for name, style in styles.items()}
    names = [*lines, "training", "validation"]
    validation = SeriesStyle("0.35", "o", "-", hatch="", zorder=1).line
    handles = [*lines.values(), Line2D([], [], color="0.35", **TRAINING_LINE), Line2D([], [], **validation)]
    if has_formula:
        names.append("the paper's formula (equation 3)")
        handles.append(Line2D([], [], linestyle="--", **REFERENCE_LINE))
    legend = axes.legend(handles, names, loc="center left", frameon=False)
    for text in legend.get_texts():
        text.set(fontsize=FONT_SIZE, fontfamily=fonts_for(names), parse_math=False)
