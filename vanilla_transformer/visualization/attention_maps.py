# SPDX-License-Identifier: Apache-2.0
"""Attention as heat maps: a row for each query, a column for each key."""

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import Bbox

from vanilla_transformer.visualization.fonts import fonts_for
from vanilla_transformer.visualization.inch_layout import LINE_HEIGHT, TITLE, TokenWriter, fit_figure, inch_axes
from vanilla_transformer.visualization.layer_attention import SIDE_NAMES, LayerAttention
from vanilla_transformer.visualization.style import FONT_SIZE

COLUMNS = 4  # panels in a row
# Font sizes of tokens by the length of a side. A figure of more than 40 tokens in full size takes seconds to write.
LENGTHS, SIZES = (16, 26, 40, 50), (FONT_SIZE, 10, 10, 8)
MIN_SIDE = 2.4  # inches of a panel, so that its title has room
GAP = 0.35  # inches between panels
PADDING = 0.07  # inches between a panel and its tokens, and beyond these
TITLE_PADDING = 6 / 72  # inches
COLOUR_BAR_WIDTH, COLOUR_BAR_LABELS = 0.3, 0.95  # inches
MASKED = "0.87"  # grey: a masked position is not a weight of 0
COLOUR_MAP = matplotlib.colormaps["Blues"].with_extremes(bad=MASKED)  # one hue from white to dark, for every eye


def token_writer(layers: Sequence[LayerAttention]) -> TokenWriter:
    """Large tokens for short sentences, smaller ones for long sentences, always legible at half size."""
    tokens = {token for layer in layers for token in (*layer.queries, *layer.keys)}
    longest = max(len(side) for layer in layers for side in (layer.queries, layer.keys))
    return TokenWriter(float(np.interp(longest, LENGTHS, SIZES)), fonts_for(sorted(tokens)))


def plot_attention_maps(layers: Sequence[LayerAttention]) -> Figure:
    """A panel for each head, the layers one below the other, with one colour scale.

    The figure grows with its tokens: a long sentence gives a large one.
    """
    writer = token_writer(layers)
    axes = inch_axes()  # for all heads: matplotlib takes longer to make axes than to draw what is in them
    vmax = max(float(layer.weights.max()) for layer in layers)
    right = bottom = 0.0
    for layer in layers:
        layer_right, bottom = _draw_layer(axes, layer, bottom + (GAP if bottom else 0.0), writer, vmax)
        right = max(right, layer_right)
    has_mask = any(layer.kind == "decoder" for layer in layers)
    bottom += 2 * LINE_HEIGHT * has_mask  # a line for its legend: beside a title there may be no room
    bar_left, bar_top = right + GAP, 2 * LINE_HEIGHT
    figure = fit_figure(axes, bar_left + COLOUR_BAR_WIDTH + COLOUR_BAR_LABELS, bottom)
    place = Bbox([(bar_left, bar_top + MIN_SIDE), (bar_left + COLOUR_BAR_WIDTH, bar_top)])
    bar_axes = figure.add_axes(place.transformed(axes.transData - figure.transFigure).bounds)
    scale = ScalarMappable(Normalize(0, vmax), COLOUR_MAP)
    bar = figure.colorbar(scale, cax=bar_axes, ticks=colour_bar_ticks(vmax), format="{x:.2g}")
    bar.set_label("attention weight", fontsize=FONT_SIZE)
    bar_axes.tick_params(labelsize=FONT_SIZE)
    if has_mask:
        patch = Patch(facecolor=MASKED, edgecolor="0.5", label="hidden from the decoder")
        figure.legend(handles=[patch], loc="lower left", fontsize=FONT_SIZE, frameon=False)
    return figure


def colour_bar_ticks(vmax: float) -> list[float]:
    """Round weights, and `vmax`, the end of the scale, in place of the round ones that it would cover."""
    ticks = MaxNLocator(5).tick_values(0, vmax)
    return [*(float(tick) for tick in ticks if tick < 0.9 * vmax), vmax]


def _draw_layer(axes: Axes, layer: LayerAttention, top: float, writer: TokenWriter, vmax: float) -> tuple[float, float]:
    """Draw the panels in rows, as equally filled as possible; return where they end at the right and below."""
    query_name, key_name = SIDE_NAMES[layer.kind]
    rows = -(-len(layer.heads) // COLUMNS)
    columns = -(-len(layer.heads) // rows)
    width, height = (max(MIN_SIDE, len(side) * writer.pitch) for side in (layer.keys, layer.queries))
    panels_left = LINE_HEIGHT + writer.max_width(layer.queries) + 2 * PADDING  # room for the queries
    key_width = writer.max_width(layer.keys)
    is_vertical = key_width > 0.95 * width / len(layer.keys)  # keys wider than the columns are rotated
    weights = np.ma.masked_array(layer.weights)  # (heads, queries, keys)
    if layer.kind == "decoder":
        weights.mask = np.broadcast_to(np.triu(np.ones(weights.shape[1:], bool), k=1), weights.shape)
    axes.text(0, top, layer.title, weight="bold", **TITLE)
    for head, name in enumerate(layer.heads):
        row, column = divmod(head, columns)
        left = panels_left + column * (width + GAP)
        upper = top + 2 * LINE_HEIGHT + row * (height + GAP + LINE_HEIGHT)
        axes.text(left + width / 2, upper - TITLE_PADDING, name, ha="center", fontsize=FONT_SIZE)
        xs = np.linspace(left, left + width, len(layer.keys) + 1)
        ys = np.linspace(upper, upper + height, len(layer.queries) + 1)
        if column == 0:
            writer.write(axes, layer.queries, [(left - PADDING, y) for y in (ys[1:] + ys[:-1]) / 2], "end")
            axes.text(0, upper + height / 2, query_name, rotation=90, va="center", fontsize=FONT_SIZE)
        if head + columns >= len(layer.heads):  # no panel is below it
            y = upper + height + PADDING + (0 if is_vertical else writer.pitch / 2)
            anchor = "end" if is_vertical else "middle"
            writer.write(axes, layer.keys, [(x, y) for x in (xs[1:] + xs[:-1]) / 2], anchor, is_vertical)
        # A mesh, not an image: matplotlib would resample an image and colour it by the pixel, which takes seconds.
        axes.pcolormesh(xs, ys, weights[head], cmap=COLOUR_MAP, vmin=0, vmax=vmax, rasterized=True)
        axes.add_patch(Rectangle((left, upper), width, height, fill=False, linewidth=0.8))
    bottom = upper + height + 2 * PADDING + (key_width if is_vertical else writer.pitch)
    axes.text(panels_left, bottom, key_name, **TITLE)  # once: it may be wider than a panel
    return panels_left + columns * (width + GAP) - GAP, bottom + LINE_HEIGHT
