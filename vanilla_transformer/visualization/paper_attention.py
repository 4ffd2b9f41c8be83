# SPDX-License-Identifier: Apache-2.0
"""Attention as in Figures 3 to 5 of the paper: two rows of words, and lines as strong as their weights."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from vanilla_transformer.visualization.attention_maps import token_text
from vanilla_transformer.visualization.fonts import OWN
from vanilla_transformer.visualization.inch_layout import LINE, Sheet, TokenText
from vanilla_transformer.visualization.layer_attention import LayerAttention
from vanilla_transformer.visualization.style import COLOURS, FONT_SIZE

BETWEEN = 2.6  # inches between the two rows of words
SMALLEST_WIDTH = 6.0  # inches, for the titles
SPACE = 0.1  # inches between a word and its lines
GAP = 0.5  # inches between blocks
LEGEND = 1.1  # inches beside the lines, without the names of the heads
QUIET = "0.35"  # the colour of what is no token
FAINTEST = 0.02  # weights below it are not drawn
LINE_WIDTH = 2.5

Dash = Literal["-", "--"]


def plot_paper_attention(blocks: Sequence[LayerAttention], word: str | None = None) -> Figure:
    """Above the tokens attended to, below those that attend; a colour for each head, a line for each weight.

    Args:
        word: a token; its attention alone is drawn, and beside the lines the tokens it attends to are marked, a
            stripe for each head. `None`: all tokens.

    Raises:
        ValueError: no block has the word; more heads than there are colours.
    """
    if word is not None:
        blocks = _with_word(blocks, word)
    text, sheet = token_text(blocks), Sheet()
    y, right = 0.0, 0.0
    for block in blocks:
        styles = head_styles(block.heads)
        sheet.text(0, y, block.title, weight="bold")
        sheet.text(0, y + LINE, f"{block.key_name} ↓", color=QUIET)
        columns = max(len(block.queries), len(block.keys))
        above, below = text.inches(block.keys) + 2 * SPACE, text.inches(block.queries) + 2 * SPACE
        width, height = max(columns * text.cell, SMALLEST_WIDTH), above + BETWEEN + below
        axes = sheet.panel(0, y + 2 * LINE, width, height)
        axes.set_axis_off()
        axes.set_xlim(-0.5, columns - 0.5)  # tokens from the left
        axes.set_ylim(-below, BETWEEN + above)  # inches upwards from the tokens that attend
        _write_tokens(axes, block, text)
        _draw_lines(axes, block, styles, word)
        if word is not None:
            _mark_tokens(axes, block, styles, word, (above, below))
        y += 2 * LINE + height
        sheet.text(0, y, f"{block.query_name} ↑", color=QUIET)
        heads = [Line2D([], [], color=style[0], linestyle=style[1], linewidth=4, label=name) for name, style in styles]
        axes.legend(handles=heads, loc="upper left", bbox_to_anchor=(1, 1), frameon=False, fontsize=FONT_SIZE)
        right = max(right, width + LEGEND + TokenText(FONT_SIZE, [OWN]).inches(block.heads))
        y += LINE + GAP
    return sheet.finished(right, y - GAP)


def head_styles(heads: Sequence[str]) -> list[tuple[str, tuple[str, Dash]]]:
    """Name, colour and dash of each head; the second ten are dashed.

    Raises:
        ValueError: more than twenty.
    """
    if len(heads) > 2 * len(COLOURS):
        raise ValueError(
            f"{len(heads)} heads cannot be told apart by colour, {2 * len(COLOURS)} at most: choose one, or their mean"
        )
    dashes: tuple[Dash, Dash] = ("-", "--")
    return [(name, (COLOURS[i % len(COLOURS)], dashes[i // len(COLOURS)])) for i, name in enumerate(heads)]


def _with_word(blocks: Sequence[LayerAttention], word: str) -> list[LayerAttention]:
    found = [block for block in blocks if word in block.queries]
    if not found:
        tokens = list(dict.fromkeys(token for block in blocks for token in block.queries))
        raise ValueError(f"word {word!r} is not among the tokens that attend: {' '.join(tokens)}")
    return found


def _places(block: LayerAttention) -> tuple[np.ndarray, np.ndarray]:
    """Where the queries and the keys stand, in tokens from the left; the shorter row in the middle."""
    columns = max(len(block.queries), len(block.keys))
    queries, keys = (np.arange(len(side)) + (columns - len(side)) / 2 for side in (block.queries, block.keys))
    return queries, keys


def _write_tokens(axes: Axes, block: LayerAttention, text: TokenText) -> None:
    queries, keys = _places(block)
    text.write(axes, block.keys, [(x, BETWEEN + SPACE) for x in keys], "start", is_upright=True)
    text.write(axes, block.queries, [(x, -SPACE) for x in queries], "end", is_upright=True)


def _draw_lines(axes: Axes, block: LayerAttention, styles: Sequence, word: str | None) -> None:
    queries, keys = _places(block)
    apart = min(0.12, 0.6 / len(styles))  # tokens from one head to the next, so that equal lines do not hide others
    for head, ((_, (colour, dash)), weights) in enumerate(zip(styles, block.weights, strict=True)):
        shift = apart * (head - (len(styles) - 1) / 2)
        is_drawn = weights >= FAINTEST
        if word is not None:
            is_drawn &= np.array([[query == word] for query in block.queries])
        query, key = np.nonzero(is_drawn)
        lines: Any = np.empty((len(query), 2, 2))  # (lines, ends, x and y)
        lines[:, 0, 0], lines[:, 1, 0] = queries[query] + shift, keys[key] + shift
        lines[:, 0, 1], lines[:, 1, 1] = 0.0, BETWEEN
        strengths = np.tile(to_rgba(colour), (len(query), 1))
        strengths[:, 3] = np.minimum(1.0, weights[is_drawn])
        strong = LineCollection(lines, colors=strengths, linewidths=LINE_WIDTH, linestyles=dash)
        axes.add_collection(strong, autolim=False)  # there may be thousands, and the axes have their limits


def _mark_tokens(axes: Axes, block: LayerAttention, styles: Sequence, word: str, room: tuple[float, float]) -> None:
    """Behind the word a grey box, behind each token it attends to a stripe for each head."""
    queries, keys = _places(block)
    above, below = room
    stripe = 0.9 / len(block.heads)  # in tokens
    for query, x in enumerate(queries):
        if block.queries[query] != word:
            continue
        axes.add_patch(Rectangle((x - 0.45, -below), 0.9, below, color="0.85", linewidth=0, zorder=1))
    for head, (_, (colour, _)) in enumerate(styles):
        of_word = [query for query, token in enumerate(block.queries) if token == word]
        for key, weight in enumerate(block.weights[head, of_word].max(axis=0)):
            corner = (keys[key] - 0.45 + head * stripe, BETWEEN)
            shade = to_rgba(colour, 0.7 * min(1.0, float(weight)))  # the token in front stays readable
            axes.add_patch(Rectangle(corner, stripe, above, color=shade, linewidth=0, zorder=1))
