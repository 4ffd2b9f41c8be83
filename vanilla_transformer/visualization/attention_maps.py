# SPDX-License-Identifier: Apache-2.0
"""Attention as heat maps: a row for each token that attends, a column for each token attended to."""

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator

from vanilla_transformer.visualization.fonts import fonts_for
from vanilla_transformer.visualization.inch_layout import LINE, Sheet, TokenText
from vanilla_transformer.visualization.layer_attention import LayerAttention
from vanilla_transformer.visualization.style import FONT_SIZE

ACROSS = 4  # panels in a row; more where others are wider
# The size of tokens in points, which are pixels at half size, by how many stand in a row: a sheet of more than 40 would
# else be so large that it takes seconds to write.
LENGTHS, SIZES = (16, 26, 40, 50), (FONT_SIZE, 10, 10, 8)
SMALLEST_SIDE = 2.4  # inches of a panel, so that its title has room
GAP = 0.35  # inches between panels
SPACE = 0.07  # inches between a panel and its tokens, and beyond these
TITLE = 6 / 72  # inches between a panel and its title
FRAME = 0.8  # points, around a panel
BAR = 0.3  # inches, the width of the colour bar
BAR_TEXT = 0.95  # inches beside it
COLOUR_MAP = "Blues"  # one hue from white to dark, for every eye
UNSEEN = "0.87"  # grey: what a position may not attend to, which is something else than a weight of 0


def token_text(blocks: Sequence[LayerAttention]) -> TokenText:
    """Large for short sentences, smaller for long ones, never below what can be read at half size (`SIZES`)."""
    tokens = {token for block in blocks for token in (*block.queries, *block.keys)}
    longest = max(len(side) for block in blocks for side in (block.queries, block.keys))
    return TokenText(float(np.interp(longest, LENGTHS, SIZES)), fonts_for(sorted(tokens)))


@dataclass(frozen=True)
class Room:
    """What the panels of a block take, in inches.

    Args:
        left: beside the first panel of a row, for the tokens that attend.
        width, height: of a panel.
        below: under the last panels, for the tokens attended to.
        is_upright: those are turned, because they are wider than the columns.
    """

    left: float
    width: float
    height: float
    below: float
    is_upright: bool

    @classmethod
    def of(cls, block: LayerAttention, text: TokenText) -> "Room":
        width, height = (max(SMALLEST_SIDE, len(side) * text.cell) for side in (block.keys, block.queries))
        widest = text.inches(block.keys)
        is_upright = widest > 0.95 * width / len(block.keys)
        left = LINE + text.inches(block.queries) + 2 * SPACE
        return cls(left, width, height, 2 * SPACE + (widest if is_upright else text.cell), is_upright)

    @property
    def row(self) -> float:
        """From the top of a panel to that of the next one below."""
        return self.height + GAP + LINE

    def corner(self, head: int, across: int) -> tuple[float, float]:
        """The upper left of a head's panel, from the left and from the top of the first one."""
        row, column = divmod(head, across)
        return self.left + column * (self.width + GAP), row * self.row

    def bottom(self, rows: int) -> float:
        """Where so many rows of panels end, the tokens under the last one included."""
        return rows * self.row - GAP - LINE + self.below

    def right(self, across: int) -> float:
        """Where so many panels in a row end."""
        return self.left + across * (self.width + GAP) - GAP

    def across(self, count: int, limit: float) -> int:
        """Panels in a row, of `count`: as few rows as end before `limit`, all as long as they can be equal."""
        most = max(1, int((limit - self.left + GAP) / (self.width + GAP) + 1e-6))
        return -(-count // -(-count // most))


def plot_attention_maps(blocks: Sequence[LayerAttention]) -> Figure:
    """A panel for each head of each block, the blocks one above the other, one scale for all colours.

    The figure is as large as its tokens need: a long sentence gives a large one.
    """
    text, sheet = token_text(blocks), Sheet()
    highest = max(float(block.weights.max()) for block in blocks)
    rooms = [Room.of(block, text) for block in blocks]
    widest = max(room.right(min(ACROSS, len(block.heads))) for block, room in zip(blocks, rooms, strict=True))
    y, right, mesh = 0.0, 0.0, None
    for block, room in zip(blocks, rooms, strict=True):
        sheet.text(0, y, block.title, weight="bold")
        y += 2 * LINE
        across = room.across(len(block.heads), widest)
        bottom = room.bottom(-(-len(block.heads) // across))
        # One for all heads: matplotlib takes longer to make axes than to draw what is in them.
        axes = sheet.panel(0, y, room.right(across), bottom)
        axes.set(xlim=(0, room.right(across)), ylim=(bottom, 0))  # inches
        axes.set_axis_off()
        mesh = _draw_heads(axes, block, room, text, across, highest)
        y += bottom
        sheet.text(room.left, y, block.key_name)  # once: it may be wider than a panel
        y += LINE + GAP
        right = max(right, room.right(across))
    assert mesh is not None  # there is a block, and it has a head
    bar_axes = sheet.panel(right + GAP, 2 * LINE, BAR, SMALLEST_SIDE)
    bar = sheet.figure.colorbar(mesh, cax=bar_axes, ticks=bar_ticks(highest), format="{x:.2g}")
    bar.set_label("attention weight", fontsize=FONT_SIZE)
    y -= GAP
    if any(block.is_causal for block in blocks):
        y += 2 * LINE  # in a line of its own: beside a title there may be no room
        sheet.figure.legend(
            handles=[Patch(facecolor=UNSEEN, edgecolor="0.5", label="hidden from the decoder")],
            loc="lower left",
            fontsize=FONT_SIZE,
            frameon=False,
        )
    return sheet.finished(right + GAP + BAR + BAR_TEXT, y)


def bar_ticks(highest: float) -> list[float]:
    """Round weights, and the highest one, which is the end of the colours, in place of those that it would cover."""
    rounds = MaxNLocator(5).tick_values(0, highest)
    return [*(float(one) for one in rounds if one < 0.9 * highest), highest]


def _draw_heads(
    axes: Axes, block: LayerAttention, room: Room, text: TokenText, across: int, highest: float
) -> QuadMesh | None:
    """A panel for each head, and the tokens beside each row and below each column of them; the last one's colours."""
    mesh = None
    for head, name in enumerate(block.heads):
        left, top = room.corner(head, across)
        mesh = _draw(axes, block, head, (left, top, room.width, room.height), highest)
        axes.text(left + room.width / 2, top - TITLE, name, ha="center", fontsize=FONT_SIZE)
        if left == room.left:
            _write_queries(axes, block, room, text, top)
            middle = top + room.height / 2
            axes.text(0, middle, block.query_name, rotation=90, va="center", fontsize=FONT_SIZE)
        if head + across >= len(block.heads):  # there is no panel below
            _write_keys(axes, block, room, text, left, top + room.height)
    return mesh


def _write_queries(axes: Axes, block: LayerAttention, room: Room, text: TokenText, top: float) -> None:
    step = room.height / len(block.queries)
    places = [(room.left - SPACE, top + (row + 0.5) * step) for row in range(len(block.queries))]
    text.write(axes, block.queries, places, "end")


def _write_keys(axes: Axes, block: LayerAttention, room: Room, text: TokenText, left: float, bottom: float) -> None:
    step = room.width / len(block.keys)
    y = bottom + SPACE + (0 if room.is_upright else text.cell / 2)
    places = [(left + (column + 0.5) * step, y) for column in range(len(block.keys))]
    text.write(axes, block.keys, places, "end" if room.is_upright else "middle", room.is_upright)


def _draw(
    axes: Axes, block: LayerAttention, head: int, place: tuple[float, float, float, float], highest: float
) -> QuadMesh:
    """A head's weights, in a frame; `place` is left, top, width and height."""
    weights = np.ma.masked_array(block.weights[head])  # (queries, keys)
    if block.is_causal:
        weights.mask = np.triu(np.ones(weights.shape, bool), k=1)
    colours = matplotlib.colormaps[COLOUR_MAP].with_extremes(bad=UNSEEN)
    left, top, width, height = place
    rows, columns = (np.linspace(0, 1, length + 1) for length in weights.shape)
    # As cells, not as an image: that one matplotlib would scale up and colour by the pixel, which takes seconds.
    cells = (left + width * columns, top + height * rows, weights)
    mesh = axes.pcolormesh(*cells, cmap=colours, vmin=0, vmax=highest, rasterized=True)
    axes.add_patch(Rectangle((left, top), width, height, fill=False, linewidth=FRAME, clip_on=False))
    return mesh
