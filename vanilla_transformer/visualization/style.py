# SPDX-License-Identifier: Apache-2.0
"""What all pictures share: sizes, the styles of series, empty figures, labels.

Text stays legible at half the pixels, about the width of a page on GitHub.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import matplotlib
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

DOTS_PER_INCH = 150
FONT_SIZE = 16  # points: 16 pixels at half size
MARGIN = 0.2  # inches around the drawing
REFERENCE_LINE: dict[str, Any] = {"color": "0.35", "linewidth": 2.5, "zorder": 1}  # marks a value that was not measured

# Petroff (2021), "Accessible Color Sequences for Data Visualization": told apart with the common colour blindnesses.
COLOURS = [to_hex(colour) for colour in matplotlib.color_sequences["petroff10"]]
MARKERS = ["o", "s", "^", "D", "v", "P", "X", "<", ">", "*"]


@dataclass(frozen=True)
class SeriesStyle:
    """How a model, a run or a head is drawn: lines have the marker and the dash, bars the hatch."""

    colour: str
    marker: str
    dash: Literal["-", "--"]
    hatch: str
    zorder: float

    @property
    def line(self) -> dict[str, Any]:
        """The properties of its line, in a plot and in the legend."""
        return {"color": self.colour, "marker": self.marker, "linestyle": self.dash, "linewidth": 2.8, "markersize": 9}

    @property
    def bar(self) -> dict[str, Any]:
        """The properties of its bars, in a plot and in the legend."""
        return {"facecolor": self.colour, "hatch": self.hatch, "edgecolor": "white"}


def series_styles(names: Sequence[str], noun: str = "models", remedy: str = "draw fewer") -> dict[str, SeriesStyle]:
    """A style for each name, by its place in the list; the second ten are dashed, and the first is drawn on top.

    Raises:
        ValueError: more than twenty of this `noun`, with the `remedy`.
    """
    if len(names) > 2 * len(COLOURS):
        raise ValueError(
            f"{len(names)} {noun} cannot be told apart in a plot, {2 * len(COLOURS)} at most can: {remedy}"
        )
    styles = {}
    for place, name in enumerate(names):
        is_dashed, colour = divmod(place, len(COLOURS))
        dash, hatch = ("--", "//") if is_dashed else ("-", "")
        styles[name] = SeriesStyle(COLOURS[colour], MARKERS[colour], dash, hatch, zorder=3 - place / 100)
    return styles


def empty_figure(
    rows: int, columns: int, inches: tuple[float, float], sharey: bool = False
) -> tuple[Figure, Sequence[Axes]]:
    """An empty figure and its panels. It is made without pyplot, which would keep every figure in memory."""
    figure = Figure(figsize=inches, dpi=DOTS_PER_INCH, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharey=sharey).flatten().tolist()
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="0.9")
        axes.set_axisbelow(True)
        axes.tick_params(labelsize=FONT_SIZE)
    return figure, panels


def label_axes(axes: Axes, title: str | None = None, x: str | None = None, y: str | None = None) -> None:
    """Write a title and names of the axes."""
    for text, write in ((title, axes.set_title), (x, axes.set_xlabel), (y, axes.set_ylabel)):
        if text is not None:
            write(text, fontsize=FONT_SIZE)


def set_log_yscale(axes: Axes, multiples: Sequence[int], number_format: str) -> None:
    """A logarithmic y axis with ticks at these multiples of each power of ten."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=multiples))
    axes.yaxis.set_major_formatter(number_format)
    axes.yaxis.set_minor_locator(NullLocator())


@contextmanager
def without_missing_glyphs() -> Iterator[None]:
    """Silence matplotlib's warning for each character that no font has: `fonts_for` names them all in one line."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font")
        yield
