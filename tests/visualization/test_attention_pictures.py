# SPDX-License-Identifier: Apache-2.0
"""Heat maps, the paper's lines, bertviz's page: they show the given weights, and nothing is cut off."""

import json
import re
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection, PathCollection, QuadMesh
from matplotlib.figure import Figure

from tests.visualization.example_attention import example_attention
from vanilla_transformer.visualization.attention_maps import plot_attention_maps, token_writer
from vanilla_transformer.visualization.interactive import interactive_page
from vanilla_transformer.visualization.layer_attention import LayerAttention, select_layers
from vanilla_transformer.visualization.paper_attention import MIN_WEIGHT, plot_paper_attention
from vanilla_transformer.visualization.style import DOTS_PER_INCH, MARGIN

SOURCE, TARGET = ["a", "cat", "$x$", "</s>"], ["eine", "Katze", "</s>"]


def maps_in(figure: Figure) -> list[Any]:
    return [mesh for axes in figure.axes for mesh in axes.collections if isinstance(mesh, QuadMesh)]


def pixels_of(figure: Figure) -> np.ndarray:
    """Its pixels, `(height, width, 3)`."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def tokens_in(figure: Figure) -> int:
    """The number of tokens, which are outlines."""
    outlines = [c for axes in figure.axes for c in axes.collections if isinstance(c, PathCollection)]
    return sum(len(collection.get_paths()) for collection in outlines)


def test_each_heads_map_holds_its_weights():
    attention = example_attention(SOURCE, TARGET)
    meshes = maps_in(plot_attention_maps(select_layers(attention, ["cross"])))
    for mesh, weights in zip(meshes[:2], attention.cross[2], strict=True):
        np.testing.assert_array_equal(mesh.get_array(), weights)


def test_the_legend_of_a_narrow_picture_overlaps_no_text():
    figure = plot_attention_maps(select_layers(example_attention(SOURCE, TARGET), ["decoder"], average=True))
    renderer: Any = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    [legend] = figure.legends
    boxes = [artist.get_window_extent(renderer) for artist in (*figure.axes[0].texts, *figure.axes[0].patches)]
    assert not any(legend.get_window_extent(renderer).overlaps(box) for box in boxes)


def test_the_causal_mask_is_not_drawn_as_zero_weights():
    [first, *_] = maps_in(plot_attention_maps(select_layers(example_attention(SOURCE, TARGET), ["decoder"])))
    np.testing.assert_array_equal(first.get_array().mask, np.triu(np.ones((3, 3), bool), k=1))


@pytest.mark.parametrize("plot", [plot_attention_maps, plot_paper_attention])
def test_long_sentences_are_neither_clipped_nor_small(plot):
    long = [f"{'long' * (i % 5)}word{i}" for i in range(40)]
    layers = select_layers(example_attention(long, long[::-1]), average=True)
    figure = plot(layers)
    assert tokens_in(figure) == 3 * (40 + 40)
    assert token_writer(layers).size >= 10  # points: pixels at half size
    pixels, edge = pixels_of(figure), round(MARGIN / 2 * DOTS_PER_INCH)
    pixels[edge:-edge, edge:-edge] = 255  # leaves half of the margin, all around
    assert pixels.min() == 255


@pytest.mark.parametrize("highest", [1.0, 0.99, 0.83, 0.0123])
def test_colour_bar_ticks_include_the_end_of_the_scale(highest):
    block = LayerAttention("cross", "", ["head"], np.array([[[0.0, highest]]]), ["a"], ["a", "b"])
    figure = plot_attention_maps([block])
    axis: Any = figure.axes[-1].yaxis
    renderer: Any = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    labels = [label.get_window_extent(renderer) for label in axis.get_ticklabels()]
    assert axis.get_ticklocs()[-1] == highest == axis.get_view_interval()[1]
    assert float(axis.get_ticklabels()[-1].get_text()) == pytest.approx(highest, rel=0.05)
    assert all(above.y0 > below.y1 for below, above in pairwise(labels))


def lines_of(figure: Figure) -> list[np.ndarray]:
    """Opacities of the lines, for each head."""
    return [c.get_colors()[:, 3] for axes in figure.axes for c in axes.collections if isinstance(c, LineCollection)]


def test_line_opacity_is_the_weight():
    attention = example_attention(SOURCE, TARGET)
    heads = lines_of(plot_paper_attention(select_layers(attention, ["cross"])))
    for opacities, weights in zip(heads, attention.cross[2], strict=True):
        np.testing.assert_allclose(opacities, weights[weights >= MIN_WEIGHT])


def test_only_the_lines_of_the_word_are_drawn():
    attention = example_attention(SOURCE, TARGET)
    heads = lines_of(plot_paper_attention(select_layers(attention, ["encoder"]), "cat"))
    for opacities, weights in zip(heads, attention.encoder[1][:, 1], strict=True):
        np.testing.assert_allclose(opacities, weights[weights >= MIN_WEIGHT])
    with pytest.raises(ValueError, match="word 'dog' is not among the tokens that attend: a cat"):
        plot_paper_attention(select_layers(attention, ["encoder"]), "dog")


def test_more_heads_than_styles_are_refused():
    attention = example_attention(SOURCE, TARGET, heads=21)
    with pytest.raises(ValueError, match="21 heads cannot be told apart in a plot, 20 at most can: choose one, or"):
        plot_paper_attention(select_layers(attention, ["cross"]))


@pytest.mark.parametrize("view", ["head", "model"])
def test_the_interactive_page_loads_nothing_and_executes_no_token(view):
    hostile = "</script><img src=x onerror=alert(1)>"
    attention = example_attention(["a", hostile], TARGET)
    page = interactive_page(attention, view, title=hostile)
    assert hostile not in page
    assert re.findall(r"<(?:script|link|img|iframe)[^>]*(?:src|href)", page) == []
    assert "cdnjs" not in page
    views = [json.loads(text) for text in re.findall(r"const params = (\{.*?\}); //", page)]
    assert [view["attention"][0]["right_text"] for view in views] == [
        ["a", hostile],
        attention.target_inputs,
        ["a", hostile],
    ]
    np.testing.assert_allclose(views[2]["attention"][0]["attn"], attention.cross, atol=1e-4)
