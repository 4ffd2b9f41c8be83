# SPDX-License-Identifier: Apache-2.0
"""A figure whose parts are placed in inches, and which is as large as they need."""

from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.text import Text

from vanilla_transformer.visualization.style import DOTS_PER_INCH, FONT_SIZE, MARGIN, without_missing_glyphs

LINE = 1.6 * FONT_SIZE / 72  # inches of a line of titles


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


@dataclass(frozen=True)
class TokenText:
    """How the tokens of a figure are written: one size and one list of fonts for all of them."""

    size: float
    families: list[str]

    @property
    def cell(self) -> float:
        """Inches from one token to the next."""
        return 1.2 * self.size / 72

    @property
    def properties(self) -> dict[str, Any]:
        """For matplotlib. A dollar in a token is a dollar, not the start of a formula."""
        return {"fontsize": self.size, "fontfamily": self.families, "parse_math": False}

    def inches(self, tokens: list[str]) -> float:
        """The width of the longest token."""
        renderer: Any = FigureCanvasAgg(Figure(dpi=DOTS_PER_INCH)).get_renderer()
        font = FontProperties(family=self.families, size=self.size)
        with without_missing_glyphs():
            widths = [renderer.get_text_width_height_descent(one, font, ismath=False)[0] for one in tokens]
        return max(widths) / DOTS_PER_INCH
