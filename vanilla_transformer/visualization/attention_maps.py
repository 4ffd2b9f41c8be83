# SPDX-License-Identifier: Apache-2.0
"""Attention as heat maps: a row for each query, a column for each key."""

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator

from vanilla_transformer.visualization.fonts import fonts_for
from vanilla_transformer.visualization.inch_layout import LINE_HEIGHT, InchLayout, TokenWriter
from vanilla_transformer.visualization.layer_attention import LayerAttention
from vanilla_transformer.visualization.style import FONT_SIZE

COLUMNS = 4  # panels in a row; more where another layer's row is wider
# Font sizes of tokens by the length of a side. A figure of more than 40 tokens in full size takes seconds to write.
LENGTHS, SIZES = (16, 26, 40, 50), (FONT_SIZE, 10, 10, 8)
MIN_SIDE = 2.4  # inches of a panel, so that its title has room
GAP = 0.35  # inches between panels
PADDING = 0.07  # inches between a panel and its tokens, and beyond these
TITLE_PADDING = 6 / 72  # inches
COLOUR_BAR_WIDTH, COLOUR_BAR_LABELS = 0.3, 0.95  # inches
COLOUR_MAP = "Blues"  # one hue from white to dark, for every eye
MASKED = "0.87"  # grey: a masked position is not a weight of 0


def token_writer(layers: Sequence[LayerAttention]) -> TokenWriter:
    """Large tokens for short sentences, smaller ones for long sentences, always legible at half size."""
    tokens = {token for layer in layers for token in (*layer.queries, *layer.keys)}
    longest = max(len(side) for layer in layers for side in (layer.queries, layer.keys))
    return TokenWriter(float(np.interp(longest, LENGTHS, SIZES)), fonts_for(sorted(tokens)))


class HeadGrid:
    """Where the panels of a layer stand, in inches: a panel for each head, in rows."""

    def __init__(self, layer: LayerAttention, writer: TokenWriter):
        self.width, self.height = (max(MIN_SIDE, len(side) * writer.pitch) for side in (layer.keys, layer.queries))
        self.left = LINE_HEIGHT + writer.max_width(layer.queries) + 2 * PADDING  # room for the queries
        key_width = writer.max_width(layer.keys)
        self.is_vertical = key_width > 0.95 * self.width / len(layer.keys)  # keys wider than the columns are rotated
        self.below = 2 * PADDING + (key_width if self.is_vertical else writer.pitch)  # room for the keys

    def corner(self, head: int, columns: int) -> tuple[float, float]:
        """The upper left corner of a head's panel."""
        row, column = divmod(head, columns)
        return self.left + column * (self.width + GAP), row * (self.height + GAP + LINE_HEIGHT)

    def bottom(self, rows: int) -> float:
        """Where the keys under the last row end."""
        return rows * (self.height + GAP + LINE_HEIGHT) - GAP - LINE_HEIGHT + self.below

    def right(self, columns: int) -> float:
        """Where a row of panels ends."""
        return self.left + columns * (self.width + GAP) - GAP

    def columns(self, heads: int, max_right: float) -> int:
        """The columns of the fewest rows that end before `max_right`, as equally filled as possible."""
        most = max(1, int((max_right - self.left + GAP) / (self.width + GAP) + 1e-6))
        return -(-heads // -(-heads // most))


def plot_attention_maps(layers: Sequence[LayerAttention]) -> Figure:
    """A panel for each head, the layers one below the other, with one colour scale.

    The figure grows with its tokens: a long sentence gives a large one.
    """
    writer, layout = token_writer(layers), InchLayout()
    vmax = max(float(layer.weights.max()) for layer in layers)
    grids = [HeadGrid(layer, writer) for layer in layers]
    max_right = max(grid.right(min(COLUMNS, len(layer.heads))) for layer, grid in zip(layers, grids, strict=True))
    y, right, mesh = 0.0, 0.0, None
    for layer, grid in zip(layers, grids, strict=True):
        layout.text(0, y, layer.title, weight="bold")
        y += 2 * LINE_HEIGHT
        columns = grid.columns(len(layer.heads), max_right)
        bottom = grid.bottom(-(-len(layer.heads) // columns))
        # One for all heads: matplotlib takes longer to make axes than to draw what is in them.
        axes = layout.panel(0, y, grid.right(columns), bottom)
        axes.set(xlim=(0, grid.right(columns)), ylim=(bottom, 0))  # inches
        axes.set_axis_off()
        for head in range(len(layer.heads)):
            mesh = _draw_head(axes, layer, head, grid, columns, writer, vmax)
        y += bottom
        layout.text(grid.left, y, layer.key_name)  # once: it may be wider than a panel
        y += LINE_HEIGHT + GAP
        right = max(right, grid.right(columns))
    assert mesh is not None  # there is a layer, and it has a head
    bar_axes = layout.panel(right + GAP, 2 * LINE_HEIGHT, COLOUR_BAR_WIDTH, MIN_SIDE)
    bar = layout.figure.colorbar(mesh, cax=bar_axes, ticks=colour_bar_ticks(vmax), format="{x:.2g}")
    bar.set_label("attention weight", fontsize=FONT_SIZE)
    y -= GAP
    if any(layer.is_causal for layer in layers):
        y += 2 * LINE_HEIGHT  # a line of its own: beside a title there may be no room
        patch = Patch(facecolor=MASKED, edgecolor="0.5", label="hidden from the decoder")
        layout.figure.legend(handles=[patch], loc="lower left", fontsize=FONT_SIZE, frameon=False)
    return layout.to_figure(right + GAP + COLOUR_BAR_WIDTH + COLOUR_BAR_LABELS, y)


def colour_bar_ticks(vmax: float) -> list[float]:
    """Round weights, and `vmax`, the end of the scale, in place of the round ones that it would cover."""
    ticks = MaxNLocator(5).tick_values(0, vmax)
    return [*(float(tick) for tick in ticks if tick < 0.9 * vmax), vmax]


def _draw_head(
    axes: Axes, layer: LayerAttention, head: int, grid: HeadGrid, columns: int, writer: TokenWriter, vmax: float
) -> QuadMesh:
    """A head's weights in a frame, and the tokens if the panel is the first of its row or the last of its column."""
    left, top = grid.corner(head, columns)
    bottom = top + grid.height
    axes.text(left + grid.width / 2, top - TITLE_PADDING, layer.heads[head], ha="center", fontsize=FONT_SIZE)
    row_height, column_width = grid.height / len(layer.queries), grid.width / len(layer.keys)
    if left == grid.left:
        ys = [top + (row + 0.5) * row_height for row in range(len(layer.queries))]
        writer.write(axes, layer.queries, [(left - PADDING, y) for y in ys], "end")
        axes.text(0, top + grid.height / 2, layer.query_name, rotation=90, va="center", fontsize=FONT_SIZE)
    if head + columns >= len(layer.heads):
        y = bottom + PADDING + (0 if grid.is_vertical else writer.pitch / 2)
        xs = [left + (column + 0.5) * column_width for column in range(len(layer.keys))]
        anchor = "end" if grid.is_vertical else "middle"
        writer.write(axes, layer.keys, [(x, y) for x in xs], anchor, grid.is_vertical)
    weights = np.ma.masked_array(layer.weights[head])  # (queries, keys)
    if layer.is_causal:
        weights.mask = np.triu(np.ones(weights.shape, bool), k=1)
    ys, xs = (np.linspace(0, 1, length + 1) for length in weights.shape)
    # A mesh, not an image: matplotlib would resample an image and colour it by the pixel, which takes seconds.
    mesh = axes.pcolormesh(
        left + grid.width * xs,
        top + grid.height * ys,
        weights,
        cmap=matplotlib.colormaps[COLOUR_MAP].with_extremes(bad=MASKED),
        vmin=0,
        vmax=vmax,
        rasterized=True,
    )
    axes.add_patch(Rectangle((left, top), grid.width, grid.height, fill=False, linewidth=0.8, clip_on=False))
    return mesh
