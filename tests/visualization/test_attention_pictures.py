# SPDX-License-Identifier: Apache-2.0
"""Heat maps, the paper's lines, bertviz's page: what is in them is what was given, and nothing is cut off."""

import json
import re
from typing import Any

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection, QuadMesh
from matplotlib.figure import Figure

from tests.visualization.example_attention import example_attention
from vanilla_transformer.visualization.attention_blocks import attention_blocks
from vanilla_transformer.visualization.attention_maps import SMALLEST_FONT, plot_attention_maps
from vanilla_transformer.visualization.interactive import interactive_page
from vanilla_transformer.visualization.paper_attention import FAINTEST, head_styles, plot_paper_attention
from vanilla_transformer.visualization.style import COLOURS, check_suffix, save_figure

SOURCE, TARGET = ["a", "cat", "$x$", "</s>"], ["eine", "Katze", "</s>"]


def maps_in(figure: Figure) -> list[Any]:
    return [mesh for axes in figure.axes for mesh in axes.collections if isinstance(mesh, QuadMesh)]


def texts_outside(figure: Figure) -> list[str]:
    """Words that are not wholly within the figure."""
    renderer: Any = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    outside, (width, height) = [], figure.bbox.size
    texts = list(figure.texts)
    for axes in figure.axes:
        of_axis = [*axes.get_xticklabels(), *axes.get_yticklabels(), axes.yaxis.label] if axes.axison else []
        texts += [*of_axis, *axes.texts, axes.title]
    for text in texts:
        box = text.get_window_extent(renderer)
        is_inside = box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height
        if text.get_text() and not is_inside:
            outside.append(text.get_text())
    return outside


def test_a_map_for_each_head_holds_its_weights():
    attention = example_attention(SOURCE, TARGET)
    meshes = maps_in(plot_attention_maps(attention_blocks(attention, ["cross"])))
    for mesh, weights in zip(meshes[:2], attention.cross[2], strict=True):
        np.testing.assert_array_equal(mesh.get_array(), weights)


def test_the_key_to_the_grey_covers_no_words_of_a_narrow_picture():
    figure = plot_attention_maps(attention_blocks(example_attention(SOURCE, TARGET), ["decoder"], average=True))
    renderer: Any = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    [key] = figure.legends
    words = [*figure.texts, *figure.axes[0].texts]
    boxes = [text.get_window_extent(renderer) for text in words]
    assert not any(key.get_window_extent(renderer).overlaps(box) for box in boxes)


def test_what_the_decoder_may_not_see_is_no_weight_of_zero():
    [first, *_] = maps_in(plot_attention_maps(attention_blocks(example_attention(SOURCE, TARGET), ["decoder"])))
    np.testing.assert_array_equal(first.get_array().mask, np.triu(np.ones((3, 3), bool), k=1))


@pytest.mark.parametrize("plot", [plot_attention_maps, plot_paper_attention])
def test_no_word_of_a_long_sentence_is_cut_off_or_small(plot):
    long = [f"{'long' * (i % 5)}word{i}" for i in range(40)]
    figure = plot(attention_blocks(example_attention(long, long[::-1]), average=True))
    assert texts_outside(figure) == []
    tokens = [text for axes in figure.axes for text in axes.texts if text.get_text() in long]
    assert {text.get_text() for text in tokens} == set(long)
    assert min(text.get_fontsize() for text in tokens) >= SMALLEST_FONT


@pytest.mark.parametrize("plot", [plot_attention_maps, plot_paper_attention])
def test_a_dollar_is_no_formula(plot):
    figure = plot(attention_blocks(example_attention(SOURCE, TARGET), ["encoder"]))
    dollars = [text for axes in figure.axes for text in axes.texts if text.get_text() == "$x$"]
    assert dollars
    assert not any(text.get_parse_math() for text in dollars)


def lines_of(figure: Figure) -> list[np.ndarray]:
    """Strengths of the lines, for each head."""
    return [c.get_colors()[:, 3] for axes in figure.axes for c in axes.collections if isinstance(c, LineCollection)]


def test_lines_are_as_strong_as_their_weights():
    attention = example_attention(SOURCE, TARGET)
    heads = lines_of(plot_paper_attention(attention_blocks(attention, ["cross"])))
    for strengths, weights in zip(heads, attention.cross[2], strict=True):
        np.testing.assert_allclose(strengths, weights[weights >= FAINTEST])


def test_a_word_has_its_own_lines_alone():
    attention = example_attention(SOURCE, TARGET)
    heads = lines_of(plot_paper_attention(attention_blocks(attention, ["encoder"]), "cat"))
    for strengths, weights in zip(heads, attention.encoder[1][:, 1], strict=True):
        np.testing.assert_allclose(strengths, weights[weights >= FAINTEST])
    with pytest.raises(ValueError, match="word 'dog' is not among the tokens that attend: a cat"):
        plot_paper_attention(attention_blocks(attention, ["encoder"]), "dog")


def test_twenty_heads_look_different_and_more_are_refused():
    assert len({look for _, look in head_styles(["head"] * 20)}) == 2 * len(COLOURS)
    with pytest.raises(ValueError, match="21 heads cannot be told apart"):
        head_styles(["head"] * 21)


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_the_size_that_is_told_is_the_figures(suffix, tmp_path):
    figure = plot_attention_maps(attention_blocks(example_attention(SOURCE, TARGET), ["cross"]))
    dots = 150 if suffix == "png" else 72
    size = save_figure(figure, tmp_path / "new" / f"a.{suffix}")
    assert size == pytest.approx([side * dots for side in figure.get_size_inches()], abs=1)


def test_another_suffix_is_refused():
    with pytest.raises(ValueError, match=r"output a.bmp: its suffix '.bmp' must be one of .png, .svg"):
        check_suffix("a.bmp")


@pytest.mark.parametrize("view", ["head", "model"])
def test_a_page_loads_nothing_and_executes_no_token(view):
    hostile = "</script><img src=x onerror=alert(1)>"
    attention = example_attention(["a", hostile], TARGET)
    page = interactive_page(attention, view, title=hostile)
    assert hostile not in page
    assert re.findall(r"<(?:script|link|img|iframe)[^>]*(?:src|href)", page) == []
    assert "cdnjs" not in page
    found = [json.loads(text) for text in re.findall(r"const params = (\{.*?\}); //", page)]
    assert [one["attention"][0]["right_text"] for one in found] == [
        ["a", hostile],
        attention.target_inputs,
        ["a", hostile],
    ]
    np.testing.assert_allclose(found[2]["attention"][0]["attn"], attention.cross, atol=1e-4)
