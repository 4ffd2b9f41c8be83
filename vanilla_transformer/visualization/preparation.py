# SPDX-License-Identifier: Apache-2.0
"""The plot of a preparation: what was dropped, and the lengths of what was read and kept.

`vanilla_transformer.preparation.report` documents the schema of the results.
"""

from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vanilla_transformer.visualization.style import FONT_SIZE, empty_figure, label_axes, series_styles


def plot_preparation(results: Mapping[str, Any], length_step: int) -> Figure:
    """Pairs dropped for each reason, and histograms of the lengths of both sides, in characters."""
    styles = series_styles(["read", "kept"])
    figure, (bars, *panels) = empty_figure(1, 3, (22, 6))
    _plot_reasons(bars, [corpus["dropped"] for corpus in results["corpora"].values()], styles["read"].colour)
    for axes, side in zip(panels, ("source", "target"), strict=True):
        for state, style in styles.items():
            counts = results["lengths"][state][side]
            edges = [length_step * place for place in range(len(counts) + 1)]
            axes.stairs(counts, edges, color=style.colour, linewidth=2.8, linestyle=style.dash, label=state)
        axes.set_yscale("symlog", linthresh=1)
        axes.set_ylim(bottom=0)
        label_axes(axes, f"{side}: the last bin is {edges[-2]} and more", "characters", "pairs")
    panels[-1].legend(frameon=False, fontsize=FONT_SIZE)
    return figure


def _plot_reasons(axes: Axes, dropped: list[Mapping[str, int]], colour: str) -> None:
    reasons = list(dropped[0])[::-1]
    counts = [sum(of_corpus[reason] for of_corpus in dropped) for reason in reasons]
    drawn = axes.barh(reasons, counts, color=colour)
    axes.bar_label(drawn, [f"{count:,}" for count in counts], padding=4, fontsize=FONT_SIZE)
    axes.set_xscale("symlog", linthresh=1)
    axes.set_xlim(0, 10 * max(1, *counts))
    label_axes(axes, "dropped by each filter", "pairs")
