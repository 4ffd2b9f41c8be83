# SPDX-License-Identifier: Apache-2.0
"""A figure whose parts are placed in inches, and which is as large as they need."""

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.path import Path
from matplotlib.text import Text
from matplotlib.textpath import text_to_path
from matplotlib.transforms import Affine2D

from vanilla_transformer.visualization.style import DOTS_PER_INCH, FONT_SIZE, MARGIN, without_missing_glyphs

LINE = 1.6 * FONT_SIZE / 72  # inches of a line of titles
MIDDLE = 0.36  # of the size, above the baseline: half of a capital


class Sheet:
    """Panels and lines of text at (inches from the left, inches downwards from the top)."""

    def __init__(self):
        self.figure = Figure(figsize=(1, 1), dpi=DOTS_PER_INCH)
        self.panels: list[tuple[Axes, tuple[float, float, float, float]]] = []
        self.texts: list[tuple[Text, float, float]] = []

    def panel(self, x: float, y: float, width: float, height: float) -> Axes:
        axes = self.figure.add_axes((0, 0, 1, 1))
        axes.tick_params(labelsize=FONT_SIZE)
        self.panels.append((axes, (x, y, width, height)))
        return axes

    def text(self, x: float, y: float, words: str, **properties: Any) -> None:
        """Words whose upper left corner is there."""
        properties = {"fontsize": FONT_SIZE, "va": "top", "ha": "left"} | properties
        self.texts.append((self.figure.text(0, 0, words, **properties), x, y))

    def finished(self, width: float, height: float) -> Figure:
        """The figure, of that size in inches and a margin around."""
        width, height = width + 2 * MARGIN, height + 2 * MARGIN
        self.figure.set_size_inches(width, height)
        for axes, (x, y, w, h) in self.panels:
            axes.set_position(((x + MARGIN) / width, 1 - (y + MARGIN + h) / height, w / width, h / height))
        for text, x, y in self.texts:
            text.set_position(((x + MARGIN) / width, 1 - (y + MARGIN) / height))
        return self.figure


class TokenText:
    """How the tokens of a figure are written: one size and one list of fonts for all of them.

    They are drawn as outlines, and each token has them made once: to matplotlib's own texts every token is a new one,
    and a sheet has hundreds, mostly the same.
    """

    def __init__(self, size: float, families: list[str]):
        self.size = size
        self._font = FontProperties(family=families, size=size)
        self._outlines: dict[str, tuple[Path, float]] = {}

    @property
    def cell(self) -> float:
        """Inches from one token to the next."""
        return 1.2 * self.size / 72

    def inches(self, tokens: Sequence[str]) -> float:
        """The width of the longest token."""
        return max(self._outline(token)[1] for token in tokens) / 72

    def write(
        self,
        axes: Axes,
        tokens: Sequence[str],
        places: Iterable[tuple[float, float]],
        part: Literal["start", "middle", "end"],
        is_upright: bool = False,
    ) -> None:
        """Each token with this part of it at its place, in the axes' coordinates; upright ones are read upwards."""
        moved = []
        for outline, width in map(self._outline, tokens):
            along = {"start": 0.0, "middle": -width / 2, "end": -width}[part]
            moved.append(outline.transformed(Affine2D().translate(along, -MIDDLE * self.size)))
        written = PathCollection(
            moved, offsets=list(places), offset_transform=axes.transData, facecolors="black", linewidths=0, zorder=3
        )
        turned = Affine2D().rotate_deg(90 if is_upright else 0).scale(1 / 72)
        written.set_transform(turned + axes.figure.dpi_scale_trans)
        axes.add_collection(written, autolim=False)

    def _outline(self, token: str) -> tuple[Path, float]:
        """A token from its origin on the baseline, and its width, in points. A dollar in it starts no formula."""
        if token not in self._outlines:
            scale = self.size / text_to_path.FONT_SCALE
            with without_missing_glyphs():
                corners, codes = text_to_path.get_text_path(self._font, token, ismath=False)
                width, _, _ = text_to_path.get_text_width_height_descent(token, self._font, ismath=False)
            self._outlines[token] = Path(np.reshape(corners, (-1, 2)) * scale, codes), width
        return self._outlines[token]
