# SPDX-License-Identifier: Apache-2.0
"""Section 3.5 of the paper as a picture: the matrix of the positional encoding."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from vanilla_transformer.visualization.fonts import fonts_for
from vanilla_transformer.visualization.style import DOTS_PER_INCH, FONT_SIZE, label_axes

MAX_POSITIONS, MAX_D_MODEL = 200, 1024
MAX_D_MODEL_WITH_VALUES = 16  # above it, the entries have no room for their values
ENTRY = (0.95, 0.55)  # inches, of an entry with its value
COLOUR_MAP = "RdBu_r"  # two hues that every eye tells apart, white between them


def positional_encoding(length: int, d_model: int, base: float = 10000.0) -> np.ndarray:
    """PE(pos, 2i) = sin(pos / base^(2i / d_model)), PE(pos, 2i + 1) = cos(the same angle).

    At the paper's base, 10000, this equals `vanilla_transformer.embeddings.sinusoid`.

    Returns:
        `(length, d_model)`.

    Raises:
        ValueError: a d_model that is odd or not positive; a base that is not a number above 1.
    """
    if d_model < 2 or d_model % 2:
        raise ValueError(f"d_model={d_model} must be even and at least 2: sine and cosine come in pairs")
    if not (math.isfinite(base) and base > 1):
        raise ValueError(f"base={base:g} must be a finite number above 1; the paper's is 10000")
    angles = np.arange(length)[:, None] / base ** (np.arange(0, d_model, 2) / d_model)  # (length, d_model / 2)
    return np.stack([np.sin(angles), np.cos(angles)], axis=-1).reshape(length, d_model)


def plot_positions(matrix: np.ndarray, words: Sequence[str] | None, base: float) -> Figure:
    """A heat map of the encoding, a row for each position; with its values where they fit.

    Args:
        matrix: `(length, d_model)`.
        words: of the sentence, one for each position; `None`: the rows are numbered.
        base: for the title.

    Raises:
        ValueError: an empty sentence; more positions or dimensions than a picture can show.
    """
    length, d_model = matrix.shape
    if length == 0:
        raise ValueError("the sentence is empty: there is no position to show")
    if length > MAX_POSITIONS or d_model > MAX_D_MODEL:
        raise ValueError(
            f"{length:,} positions of d_model={d_model:,} are too many for a picture: {MAX_POSITIONS} positions and "
            f"d_model={MAX_D_MODEL:,} at most"
        )
    has_values = d_model <= MAX_D_MODEL_WITH_VALUES
    width, height = 11.0, max(5.0, length * (0.3 if words else 0.0))
    if has_values:
        width, height = d_model * ENTRY[0], length * ENTRY[1]
    figure = Figure(figsize=(width + 4, height + 2.5), dpi=DOTS_PER_INCH, layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(matrix, cmap=COLOUR_MAP, vmin=-1, vmax=1, aspect="auto", interpolation="nearest")
    if words is not None:
        labels = [f"{word}  {position}" for position, word in enumerate(words)]
        axes.set_yticks(range(length), labels, fontfamily=fonts_for(words), parse_math=False)
    if has_values:
        names = [f"{dimension}\n{('sin', 'cos')[dimension % 2]}" for dimension in range(d_model)]
        axes.set_xticks(range(d_model), names)
        for (row, column), value in np.ndenumerate(matrix):
            text, colour = f"{value:.2f}".replace("-", "−"), "white" if abs(value) > 0.65 else "black"
            axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=FONT_SIZE)
    label_axes(
        axes,
        f"Positional encoding: d_model = {d_model}, base {base:g}",
        "dimension: even ones are sines, odd ones cosines",
        "position" if words is None else "word and its position",
    )
    axes.tick_params(labelsize=FONT_SIZE)
    bar = figure.colorbar(image, ax=axes, ticks=[-1, 0, 1])
    bar.ax.tick_params(labelsize=FONT_SIZE)
    return figure
