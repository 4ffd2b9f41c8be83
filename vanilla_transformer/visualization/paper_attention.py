# SPDX-License-Identifier: Apache-2.0
"""Attention as in Figures 3 to 5 of the paper: two rows of tokens, and lines as opaque as their weights."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from vanilla_transformer.visualization.attention_maps import token_writer
from vanilla_transformer.visualization.fonts import DEFAULT_FAMILY
from vanilla_transformer.visualization.inch_layout import LINE_HEIGHT, TITLE, TokenWriter, fit_figure, inch_axes
from vanilla_transformer.visualization.layer_attention import SIDE_NAMES, LayerAttention
from vanilla_transformer.visualization.style import FONT_SIZE, SeriesStyle, series_styles

DISTANCE = 2.6  # inches between the two rows of tokens
MIN_WIDTH = 6.0  # inches, for the titles
PADDING = 0.1  # inches between a token and its lines
GAP = 0.5  # inches between layers
LEGEND_WIDTH = 1.1  # inches beside the lines, without the names of the heads
LABEL_COLOUR = "0.35"
MIN_WEIGHT = 0.02  # smaller weights are not drawn


def plot_paper_attention(layers: Sequence[LayerAttention], word: str | None = None) -> Figure:
    """The keys above, the queries below; a colour for each head, a line for each weight.

    Args:
        word: draw the attention of this token alone, and mark the tokens that it attends to with a stripe for each
            head; `None`: draw all tokens.

    Raises:
        ValueError: no layer has the word; more heads than there are styles.
    """
    if word is not None and not any(word in layer.queries for layer in layers):
        tokens = list(dict.fromkeys(token for layer in layers for token in layer.queries))
        raise ValueError(f"word {word!r} is not among the tokens that attend: {' '.join(tokens)}")
    drawn = [layer for layer in layers if word is None or word in layer.queries]
    writer, axes = token_writer(drawn), inch_axes()
    y = right = 0.0
    for layer in drawn:
        styles = series_styles(layer.heads, "heads", "choose one, or their mean")
        query_name, key_name = SIDE_NAMES[layer.kind]
        axes.text(0, y, layer.title, weight="bold", **TITLE)
        axes.text(0, y + LINE_HEIGHT, f"{key_name} ↓", color=LABEL_COLOUR, **TITLE)
        y += 2 * LINE_HEIGHT
        width, bottom = _draw_layer(axes, layer, y, styles, writer, word)
        heads = [Line2D([], [], color=s.colour, linestyle=s.dash, linewidth=4, label=n) for n, s in styles.items()]
        corner: dict[str, Any] = {"bbox_to_anchor": (width, y), "bbox_transform": axes.transData}
        axes.figure.legend(handles=heads, loc="upper left", frameon=False, fontsize=FONT_SIZE, **corner)
        axes.text(0, bottom, f"{query_name} ↑", color=LABEL_COLOUR, **TITLE)
        right = max(right, width + LEGEND_WIDTH + TokenWriter(FONT_SIZE, [DEFAULT_FAMILY]).max_width(layer.heads))
        y = bottom + LINE_HEIGHT + GAP
    return fit_figure(axes, right, y - GAP)


def _draw_layer(
    axes: Axes,
    layer: LayerAttention,
    top: float,
    styles: Mapping[str, SeriesStyle],
    writer: TokenWriter,
    word: str | None,
) -> tuple[float, float]:
    """Tokens, lines and, for a word, the marks behind it and its keys; return where they end at the right and below."""
    columns = max(len(layer.queries), len(layer.keys))
    pitch = max(writer.pitch, MIN_WIDTH / columns)
    above, below = (writer.max_width(tokens) + 2 * PADDING for tokens in (layer.keys, layer.queries))
    key_y, query_y = top + above, top + above + DISTANCE
    query_x, key_x = ((np.arange(len(s)) + (columns - len(s) + 1) / 2) * pitch for s in (layer.queries, layer.keys))
    writer.write(axes, layer.keys, [(x, key_y - PADDING) for x in key_x], "start", is_vertical=True)
    writer.write(axes, layer.queries, [(x, query_y + PADDING) for x in query_x], "end", is_vertical=True)
    is_selected = np.array([word is None or query == word for query in layer.queries])  # (queries)
    spacing = pitch * min(0.12, 0.6 / len(styles))  # from one head to the next, so that equal lines stay apart
    stripe = 0.9 * pitch / len(styles)
    for head, style in enumerate(styles.values()):
        weights = layer.weights[head] * is_selected[:, None]  # (queries, keys)
        shift = spacing * (head - (len(styles) - 1) / 2)
        query, key = np.nonzero(weights >= MIN_WEIGHT)
        lines: Any = np.empty((len(query), 2, 2))  # (lines, ends, x and y)
        lines[..., 0] = np.stack([query_x[query], key_x[key]], axis=-1) + shift
        lines[..., 1] = query_y, key_y
        colours = np.tile(to_rgba(style.colour), (len(query), 1))
        colours[:, 3] = np.minimum(1.0, weights[query, key])
        collection = LineCollection(lines, colors=colours, linewidths=2.5, linestyles=style.dash)
        axes.add_collection(collection, autolim=False)  # there may be thousands, and the axes have their limits
        if word is not None:
            for x, weight in zip(key_x, weights.max(axis=0), strict=True):
                colour = to_rgba(style.colour, 0.7 * min(1.0, float(weight)))  # the token in front stays readable
                corner = (x - 0.45 * pitch + head * stripe, top)
                axes.add_patch(Rectangle(corner, stripe, above, color=colour, linewidth=0, zorder=1))
    if word is not None:
        for x in query_x[is_selected]:
            corner = (x - 0.45 * pitch, query_y)
            axes.add_patch(Rectangle(corner, 0.9 * pitch, below, color="0.85", linewidth=0, zorder=1))
    return columns * pitch, query_y + below
