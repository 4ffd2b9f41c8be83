# SPDX-License-Identifier: Apache-2.0
"""Attention as heat maps: a row for each token that attends, a column for each token attended to."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from vanilla_transformer.visualization.attention_blocks import AttentionBlock
from vanilla_transformer.visualization.fonts import fonts_for
from vanilla_transformer.visualization.sheet import LINE, Sheet, TokenText
from vanilla_transformer.visualization.style import FONT_SIZE

ACROSS = 4  # panels in a row; more where others are wider
SMALLEST_FONT = 10  # points, of tokens: 10 pixels at half size
LARGE_UP_TO = 16  # tokens
SMALLEST_SIDE = 2.4  # inches of a panel, so that its title has room
GAP = 0.35  # inches between panels
SPACE = 0.07  # inches between a panel and its tokens, and beyond these
BAR = 0.3  # inches, the width of the colour bar
BAR_TEXT = 0.95  # inches beside it
COLOUR_MAP = "Blues"  # one hue from white to dark, for every eye
UNSEEN = "0.87"  # grey: what a position may not attend to, which is something else than a weight of 0


def token_text(blocks: Sequence[AttentionBlock]) -> TokenText:
    """Large for short sentences, smaller for long ones, never below what can be read at half size."""
    tokens = {token for block in blocks for token in (*block.queries, *block.keys)}
    longest = max(len(side) for block in blocks for side in (block.queries, block.keys))
    size = FONT_SIZE * min(1.0, LARGE_UP_TO / longest)
    return TokenText(max(SMALLEST_FONT, size), fonts_for(sorted(tokens)))


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
    def of(cls, block: AttentionBlock, text: TokenText) -> "Room":
        width, height = (max(SMALLEST_SIDE, len(side) * text.cell) for side in (block.keys, block.queries))
        widest = text.inches(block.keys)
        is_upright = widest > 0.95 * width / len(block.keys)
        left = LINE + text.inches(block.queries) + 2 * SPACE
        return cls(left, width, height, 2 * SPACE + (widest if is_upright else text.cell), is_upright)

    @property
    def row(self) -> float:
        """From the top of a panel to that of the next one below."""
        return self.height + GAP + LINE

    def right(self, across: int) -> float:
        """Where so many panels in a row end."""
        return self.left + across * (self.width + GAP) - GAP

    def across(self, count: int, limit: float) -> int:
        """Panels in a row, of `count`: as few rows as end before `limit`, all as long as they can be equal."""
        most = max(1, int((limit - self.left + GAP) / (self.width + GAP) + 1e-6))
        return -(-count // -(-count // most))


def plot_attention_maps(blocks: Sequence[AttentionBlock]) -> Figure:
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
        count = len(block.heads)
        across = room.across(count, widest)
        rows = -(-count // across)
        for head in range(count):
            row, column = divmod(head, across)
            top = y + row * room.row
            axes = sheet.panel(room.left + column * (room.width + GAP), top, room.width, room.height)
            mesh = _draw(axes, block, head, highest)
            axes.set(xticks=[], yticks=[])
            if column == 0:
                _write_queries(axes, block, room, text)
                sheet.text(0, top + room.height / 2, block.query_name, rotation=90, va="center")
            if head + across >= count:  # there is no panel below
                _write_keys(axes, block, room, text)
        y += rows * room.row - GAP - LINE + room.below
        sheet.text(room.left, y, block.key_name)  # once: it may be wider than a panel
        y += LINE + GAP
        right = max(right, room.right(across))
    assert mesh is not None  # there is a block, and it has a head
    bar_axes = sheet.panel(right + GAP, 2 * LINE, BAR, SMALLEST_SIDE)
    bar = sheet.figure.colorbar(mesh, cax=bar_axes)
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


# The tokens are plain text: a tick of an axis takes matplotlib several times as long, and a sheet has hundreds.


def _write_queries(axes: Axes, block: AttentionBlock, room: Room, text: TokenText) -> None:
    x, where = -SPACE / room.width, axes.get_yaxis_transform()
    for row, token in enumerate(block.queries):
        axes.text(x, row, token, ha="right", va="center_baseline", transform=where, **text.properties)


def _write_keys(axes: Axes, block: AttentionBlock, room: Room, text: TokenText) -> None:
    y, where = -SPACE / room.height, axes.get_xaxis_transform()
    rotation = 90 if room.is_upright else 0
    for column, token in enumerate(block.keys):
        axes.text(column, y, token, ha="center", va="top", rotation=rotation, transform=where, **text.properties)


def _draw(axes: Axes, block: AttentionBlock, head: int, highest: float) -> Any:
    weights = np.ma.masked_array(block.weights[head])  # (queries, keys)
    if block.is_causal:
        weights.mask = np.triu(np.ones(weights.shape, bool), k=1)
    colours = matplotlib.colormaps[COLOUR_MAP].with_extremes(bad=UNSEEN)
    axes.set_title(block.heads[head], fontsize=FONT_SIZE, y=1.0)  # with a place given, matplotlib looks for none
    rows, columns = (np.arange(length + 1) - 0.5 for length in weights.shape)
    # As cells, not as an image: that one matplotlib would scale up and colour by the pixel, which takes seconds.
    mesh = axes.pcolormesh(columns, rows, weights, cmap=colours, vmin=0, vmax=highest, rasterized=True)
    axes.invert_yaxis()
    return mesh
