# SPDX-License-Identifier: Apache-2.0
"""What all pictures share: sizes, the styles of series, empty figures, labels.

Text stays legible at half the pixels, about the width of a page on GitHub.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
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

CELLS = {"tanh": "tanh RNN", "gru": "GRU", "lstm": "LSTM"}
# Every kind of model has the same place among the styles in all plots. The second ten places are dashed.
MODEL_PLACES = {"Transformer": 0}
for _place, _cell in enumerate(CELLS.values(), start=1):
    MODEL_PLACES |= {_cell: _place, f"{_cell} + attention": 7 - _place}
    MODEL_PLACES |= {f"{_cell} + additive attention": 7 - _place, f"{_cell} + multiplicative attention": 17 - _place}


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
    _check_count(len(names), noun, remedy)
    return {name: _style(place, rank=place) for place, name in enumerate(names)}


def model_styles(kinds: Mapping[str, str], noun: str = "models") -> dict[str, SeriesStyle]:
    """A style for each name, by its kind of model; the first is drawn on top.

    Names of a kind that has no place, or of the kind of an earlier name, take the places that are left.

    Args:
        kinds: name → a key of `MODEL_PLACES`, or any other text.

    Raises:
        ValueError: more than twenty of this `noun`.
    """
    _check_count(len(kinds), noun, "draw fewer")
    places: dict[str, int] = {}
    for name, kind in kinds.items():
        if kind in MODEL_PLACES and MODEL_PLACES[kind] not in places.values():
            places[name] = MODEL_PLACES[kind]
    # Places that no kind has come first.
    left = sorted(set(range(2 * len(COLOURS))) - set(places.values()), key=lambda at: (at in MODEL_PLACES.values(), at))
    places |= dict(zip((name for name in kinds if name not in places), left, strict=False))
    return {name: _style(places[name], rank) for rank, name in enumerate(kinds)}


def model_kind(config: Any) -> str:
    """The kind of a model with this configuration: a key of `MODEL_PLACES`."""
    if config.model_type == "vanilla_transformer":
        return "Transformer"
    return CELLS[config.cell] + " + attention" * (config.attention != "none")


def _check_count(count: int, noun: str, remedy: str) -> None:
    if count > 2 * len(COLOURS):
        raise ValueError(f"{count} {noun} cannot be told apart in a plot, {2 * len(COLOURS)} at most can: {remedy}")


def _style(place: int, rank: int) -> SeriesStyle:
    is_dashed, colour = divmod(place, len(COLOURS))
    dash, hatch = ("--", "//") if is_dashed else ("-", "")
    return SeriesStyle(COLOURS[colour], MARKERS[colour], dash, hatch, zorder=3 - rank / 100)


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
