# SPDX-License-Identifier: Apache-2.0
"""Attention as heat maps: a row for each token that attends, a column for each token attended to."""

from collections.abc import Sequence
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

ACROSS = 4  # panels in a row
SMALLEST_FONT = 10  # points, of tokens: 10 pixels at half size
LARGE_UP_TO = 16  # tokens
SMALLEST_SIDE = 2.4  # inches of a panel, so that its title has room
GAP = 0.35  # inches between panels
BAR = 0.3  # inches, the width of the colour bar
COLOUR_MAP = "Blues"  # one hue from white to dark, for every eye
UNSEEN = "0.87"  # grey: what a position may not attend to, which is something else than a weight of 0


def token_text(blocks: Sequence[AttentionBlock]) -> TokenText:
    """Large for short sentences, smaller for long ones, never below what can be read at half size."""
    tokens = {token for block in blocks for token in (*block.queries, *block.keys)}
    longest = max(len(side) for block in blocks for side in (block.queries, block.keys))
    size = FONT_SIZE * min(1.0, LARGE_UP_TO / longest)
    return TokenText(max(SMALLEST_FONT, size), fonts_for(sorted(tokens)))


def plot_attention_maps(blocks: Sequence[AttentionBlock]) -> Figure:
    """A panel for each head of each block, the blocks one above the other, one scale for all colours.

    The figure is as large as its tokens need: a long sentence gives a large one.
    """
    text, sheet = token_text(blocks), Sheet()
    highest = max(float(block.weights.max()) for block in blocks)
    y, right, image = 0.0, 0.0, None
    for block in blocks:
        sheet.text(0, y, block.title, weight="bold")
        y += LINE
        left = LINE + text.inches(block.queries) + 0.15  # beside the first panel of a row
        width, height = (max(SMALLEST_SIDE, len(side) * text.cell) for side in (block.keys, block.queries))
        widest = text.inches(block.keys)
        is_upright = widest > 0.95 * width / len(block.keys)  # turned, because wider than the columns
        below = LINE + 0.15 + (widest if is_upright else text.cell)
        count = len(block.heads)
        for head in range(count):
            row, column = divmod(head, ACROSS)
            x, down = left + column * (width + GAP), y + LINE + row * (height + GAP + LINE)
            axes = sheet.panel(x, down, width, height)
            image = _draw(axes, block, head, highest)
            axes.set(xticks=[], yticks=[])
            if column == 0:
                axes.set_yticks(range(len(block.queries)), block.queries, **text.properties)
                axes.set_ylabel(block.query_name, fontsize=FONT_SIZE)
            if head + ACROSS >= count:  # there is no panel below
                rotation = 90 if is_upright else 0
                axes.set_xticks(range(len(block.keys)), block.keys, rotation=rotation, **text.properties)
                if column == 0:  # once for the row: it may be wider than a panel
                    axes.set_xlabel(block.key_name, fontsize=FONT_SIZE, loc="left")
            right = max(right, x + width)
        y += -(-count // ACROSS) * (height + GAP + LINE) + below
    assert image is not None  # there is a block, and it has a head
    bar_axes = sheet.panel(right + GAP, 2 * LINE, BAR, SMALLEST_SIDE)
    bar = sheet.figure.colorbar(image, cax=bar_axes)
    bar.set_label("attention weight", fontsize=FONT_SIZE)
    if any(block.is_causal for block in blocks):
        sheet.figure.legend(
            handles=[Patch(facecolor=UNSEEN, edgecolor="0.5", label="hidden from the decoder")],
            loc="upper right",
            fontsize=FONT_SIZE,
            frameon=False,
        )
    return sheet.finished(right + GAP + BAR + 1.2, y)


def _draw(axes: Axes, block: AttentionBlock, head: int, highest: float) -> Any:
    weights = np.ma.masked_array(block.weights[head])  # (queries, keys)
    if block.is_causal:
        weights.mask = np.triu(np.ones(weights.shape, bool), k=1)
    colours = matplotlib.colormaps[COLOUR_MAP].with_extremes(bad=UNSEEN)
    axes.set_title(block.heads[head], fontsize=FONT_SIZE)
    return axes.imshow(weights, cmap=colours, vmin=0, vmax=highest, aspect="auto", interpolation="nearest")
