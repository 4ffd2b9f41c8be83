# SPDX-License-Identifier: Apache-2.0
"""Tokens drawn as outlines, against matplotlib's own text."""

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from vanilla_transformer.visualization.inch_layout import HALF_CAPITAL, TokenWriter
from vanilla_transformer.visualization.style import DOTS_PER_INCH

SIZE = 20  # points
PIXELS_PER_POINT = DOTS_PER_INCH / 72


def ink_bounds(figure: Figure) -> np.ndarray:
    """Top, bottom, left and right of the dark pixels."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    rows, columns = np.nonzero(np.asarray(canvas.buffer_rgba())[..., 0] < 128)
    return np.array([rows.min(), rows.max(), columns.min(), columns.max()])


@pytest.fixture(name="figures")
def two_empty_figures() -> list[Figure]:
    figures = [Figure(figsize=(3, 3), dpi=DOTS_PER_INCH) for _ in range(2)]
    for figure in figures:
        figure.add_axes((0, 0, 1, 1)).set_axis_off()
    return figures


@pytest.mark.parametrize(("anchor", "side"), [("start", "left"), ("middle", "center"), ("end", "right")])
@pytest.mark.parametrize("is_vertical", [False, True])
@pytest.mark.parametrize("token", ["grünen", "$x$", "\\$y$", "Быстрая"])
def test_a_token_is_placed_as_matplotlibs_text(figures, token, is_vertical, anchor, side):
    outlined, reference = figures
    TokenWriter(SIZE, ["DejaVu Sans"]).write(outlined.axes[0], [token], [(0.5, 0.5)], anchor, is_vertical)
    rotation = {"rotation": 90 if is_vertical else 0, "rotation_mode": "anchor"}
    reference.axes[0].text(0.5, 0.5, token, fontsize=SIZE, ha=side, va="baseline", parse_math=False, **rotation)
    lower = round(HALF_CAPITAL * SIZE * PIXELS_PER_POINT)  # an outline is centred, a text stands on its baseline
    shift = [0, 0, lower, lower] if is_vertical else [lower, lower, 0, 0]
    difference = ink_bounds(outlined) - ink_bounds(reference) - shift
    assert np.abs(difference).max() <= 4  # pixels of 42: matplotlib snaps letters to the pixel grid


def test_max_width_is_that_of_the_longest_token(figures):
    renderer = FigureCanvasAgg(figures[0]).get_renderer()
    tokens = ["iiiiii", "WWWW", ""]
    expected = [
        figures[0].axes[0].text(0, 0, token, fontsize=SIZE).get_window_extent(renderer).width for token in tokens
    ]
    width = TokenWriter(SIZE, ["DejaVu Sans"]).max_width(tokens)
    assert width == pytest.approx(max(expected) / DOTS_PER_INCH, rel=0.02)
