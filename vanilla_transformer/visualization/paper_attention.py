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
from vanilla_transformer.visualization.inch_layout import LINE_HEIGHT, InchLayout, TokenWriter
from vanilla_transformer.visualization.layer_attention import LayerAttention
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
    if word is not None:
        layers = _layers_with_word(layers, word)
    writer, layout = token_writer(layers), InchLayout()
    y, right = 0.0, 0.0
    for layer in layers:
        styles = series_styles(layer.heads, "heads", "choose one, or their mean")
        layout.text(0, y, layer.title, weight="bold")
        layout.text(0, y + LINE_HEIGHT, f"{layer.key_name} ↓", color=LABEL_COLOUR)
        columns = max(len(layer.queries), len(layer.keys))
        above, below = (writer.max_width(tokens) + 2 * PADDING for tokens in (layer.keys, layer.queries))
        width, height = max(columns * writer.pitch, MIN_WIDTH), above + DISTANCE + below
        axes = layout.panel(0, y + 2 * LINE_HEIGHT, width, height)
        axes.set_axis_off()
        # x in tokens from the left, y in inches upwards from the queries
        axes.set(xlim=(-0.5, columns - 0.5), ylim=(-below, DISTANCE + above))
        _draw_layer(axes, layer, styles, writer, word, above, below)
        y += 2 * LINE_HEIGHT + height
        layout.text(0, y, f"{layer.query_name} ↑", color=LABEL_COLOUR)
        heads = [Line2D([], [], color=s.colour, linestyle=s.dash, linewidth=4, label=n) for n, s in styles.items()]
        axes.legend(handles=heads, loc="upper left", bbox_to_anchor=(1, 1), frameon=False, fontsize=FONT_SIZE)
        right = max(right, width + LEGEND_WIDTH + TokenWriter(FONT_SIZE, [DEFAULT_FAMILY]).max_width(layer.heads))
        y += LINE_HEIGHT + GAP
    return layout.to_figure(right, y - GAP)


def _layers_with_word(layers: Sequence[LayerAttention], word: str) -> list[LayerAttention]:
    found = [layer for layer in layers if word in layer.queries]
    if not found:
        tokens = list(dict.fromkeys(token for layer in layers for token in layer.queries))
        raise ValueError(f"word {word!r} is not among the tokens that attend: {' '.join(tokens)}")
    return found


def _draw_layer(
    axes: Axes,
    layer: LayerAttention,
    styles: Mapping[str, SeriesStyle],
    writer: TokenWriter,
    word: str | None,
    above: float,
    below: float,
) -> None:
    """Tokens, lines and, for a word, the marks behind it and behind its keys."""
    columns = max(len(layer.queries), len(layer.keys))
    query_x, key_x = (np.arange(len(side)) + (columns - len(side)) / 2 for side in (layer.queries, layer.keys))
    writer.write(axes, layer.keys, [(x, DISTANCE + PADDING) for x in key_x], "start", is_vertical=True)
    writer.write(axes, layer.queries, [(x, -PADDING) for x in query_x], "end", is_vertical=True)
    is_selected = np.array([word is None or query == word for query in layer.queries])  # (queries)
    spacing = min(0.12, 0.6 / len(styles))  # tokens from one head to the next, so that equal lines stay apart
    for head, style in enumerate(styles.values()):
        shift = spacing * (head - (len(styles) - 1) / 2)
        _draw_lines(axes, layer.weights[head] * is_selected[:, None], query_x + shift, key_x + shift, style)
    if word is None:
        return
    for x in query_x[is_selected]:
        axes.add_patch(Rectangle((x - 0.45, -below), 0.9, below, color="0.85", linewidth=0, zorder=1))
    stripe = 0.9 / len(layer.heads)  # in tokens
    for head, style in enumerate(styles.values()):
        for x, weight in zip(key_x, layer.weights[head, is_selected].max(axis=0), strict=True):
            colour = to_rgba(style.colour, 0.7 * min(1.0, float(weight)))  # the token in front stays readable
            corner = (x - 0.45 + head * stripe, DISTANCE)
            axes.add_patch(Rectangle(corner, stripe, above, color=colour, linewidth=0, zorder=1))


def _draw_lines(axes: Axes, weights: np.ndarray, query_x: np.ndarray, key_x: np.ndarray, style: SeriesStyle) -> None:
    """A line for each weight of a head; `weights` are `(queries, keys)`."""
    query, key = np.nonzero(weights >= MIN_WEIGHT)
    lines: Any = np.empty((len(query), 2, 2))  # (lines, ends, x and y)
    lines[:, 0, 0], lines[:, 1, 0] = query_x[query], key_x[key]
    lines[:, 0, 1], lines[:, 1, 1] = 0.0, DISTANCE
    colours = np.tile(to_rgba(style.colour), (len(query), 1))
    colours[:, 3] = np.minimum(1.0, weights[query, key])
    collection = LineCollection(lines, colors=colours, linewidths=2.5, linestyles=style.dash)
    axes.add_collection(collection, autolim=False)  # there may be thousands, and the axes have their limits
