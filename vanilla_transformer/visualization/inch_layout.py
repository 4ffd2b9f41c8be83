# SPDX-License-Identifier: Apache-2.0
"""Figures whose parts are placed in inches, and which grow as large as they need."""

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.path import Path
from matplotlib.textpath import text_to_path
from matplotlib.transforms import Affine2D

from vanilla_transformer.visualization.style import DOTS_PER_INCH, FONT_SIZE, MARGIN, without_missing_glyphs

LINE_HEIGHT = 1.6 * FONT_SIZE / 72  # inches, of titles
TITLE: dict[str, Any] = {"fontsize": FONT_SIZE, "va": "top"}  # its upper left corner is at (x, y)
HALF_CAPITAL = 0.36  # of the font size: the middle of a capital above the baseline


def inch_axes() -> Axes:
    """Axes that cover a new figure; their coordinates are inches from the left, and downwards."""
    axes = Figure(dpi=DOTS_PER_INCH).add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    return axes


def fit_figure(axes: Axes, width: float, height: float) -> Figure:
    """The figure of `inch_axes` with this size, in inches, and a margin around it."""
    figure = axes.figure
    assert isinstance(figure, Figure)
    figure.set_size_inches(width + 2 * MARGIN, height + 2 * MARGIN)
    axes.set(xlim=(-MARGIN, width + MARGIN), ylim=(height + MARGIN, -MARGIN))
    return figure


class TokenWriter:
    """Writes the tokens of a figure, all with one size and one list of fonts.

    A figure has hundreds of tokens, most of them repeated. matplotlib would lay out each as a new text, which doubles
    the time of a large figure; here each distinct token becomes an outline once.
    """

    def __init__(self, size: float, families: list[str]):
        self.size = size  # points
        self.pitch = 1.2 * size / 72  # inches from one token to the next
        self._font = FontProperties(family=families, size=size)
        self._outlines: dict[str, tuple[Path, float]] = {}

    def max_width(self, tokens: Sequence[str]) -> float:
        """The width of the longest token, in inches."""
        return max(self._outline(token)[1] for token in tokens) / 72

    def write(
        self,
        axes: Axes,
        tokens: Sequence[str],
        positions: Iterable[tuple[float, float]],
        anchor: Literal["start", "middle", "end"],
        is_vertical: bool = False,
    ) -> None:
        """Write each token with its anchor at a position, in the axes' coordinates; vertical ones read upwards."""
        outlines = []
        for outline, width in map(self._outline, tokens):
            shift = {"start": 0.0, "middle": -width / 2, "end": -width}[anchor]
            outlines.append(outline.transformed(Affine2D().translate(shift, -HALF_CAPITAL * self.size)))
        collection = PathCollection(
            outlines,
            offsets=list(positions),
            offset_transform=axes.transData,
            facecolors="black",
            linewidths=0,
            zorder=3,
        )
        rotated = Affine2D().rotate_deg(90 if is_vertical else 0).scale(1 / 72)
        collection.set_transform(rotated + axes.figure.dpi_scale_trans)
        axes.add_collection(collection, autolim=False)

    def _outline(self, token: str) -> tuple[Path, float]:
        """A token's outline from its origin on the baseline, and its width, in points; a dollar starts no formula."""
        if token not in self._outlines:
            scale = self.size / text_to_path.FONT_SCALE
            with without_missing_glyphs():
                corners, codes = text_to_path.get_text_path(self._font, token, ismath=False)
                width, _, _ = text_to_path.get_text_width_height_descent(token, self._font, ismath=False)
            self._outlines[token] = Path(np.reshape(corners, (-1, 2)) * scale, codes), width
        return self._outlines[token]
