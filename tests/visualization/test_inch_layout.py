# SPDX-License-Identifier: Apache-2.0
"""Tokens drawn as outlines, against matplotlib's own text."""

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from vanilla_transformer.visualization.inch_layout import MIDDLE, TokenText
from vanilla_transformer.visualization.style import DOTS_PER_INCH

SIZE = 20  # points
DOTS = DOTS_PER_INCH / 72  # pixels of a point


def corners_of_the_ink(figure: Figure) -> np.ndarray:
    """Top, bottom, left and right of what is dark, in pixels."""
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


@pytest.mark.parametrize(("part", "side"), [("start", "left"), ("middle", "center"), ("end", "right")])
@pytest.mark.parametrize("is_upright", [False, True])
@pytest.mark.parametrize("token", ["grünen", "$x$", "\\$y$", "Быстрая"])
def test_a_token_stands_where_matplotlib_would_write_it(figures, token, is_upright, part, side):
    ours, theirs = figures
    TokenText(SIZE, ["DejaVu Sans"]).write(ours.axes[0], [token], [(0.5, 0.5)], part, is_upright)
    turned = {"rotation": 90 if is_upright else 0, "rotation_mode": "anchor"}
    theirs.axes[0].text(0.5, 0.5, token, fontsize=SIZE, ha=side, va="baseline", parse_math=False, **turned)
    lower = round(MIDDLE * SIZE * DOTS)  # ours has its middle at the place, not its baseline
    moved = [0, 0, lower, lower] if is_upright else [lower, lower, 0, 0]
    difference = corners_of_the_ink(ours) - corners_of_the_ink(theirs) - moved
    assert np.abs(difference).max() <= 4  # pixels of 42: their letters are moved to whole ones


def test_the_width_is_that_of_the_longest_token(figures):
    renderer = FigureCanvasAgg(figures[0]).get_renderer()
    tokens = ["iiiiii", "WWWW", ""]
    theirs = [figures[0].axes[0].text(0, 0, token, fontsize=SIZE).get_window_extent(renderer).width for token in tokens]
    ours = TokenText(SIZE, ["DejaVu Sans"]).inches(tokens)
    assert ours == pytest.approx(max(theirs) / DOTS_PER_INCH, rel=0.02)
