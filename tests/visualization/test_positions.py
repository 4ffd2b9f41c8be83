# SPDX-License-Identifier: Apache-2.0
import math

import numpy as np
import pytest
import torch

from vanilla_transformer.embeddings import sinusoid
from vanilla_transformer.visualization.positions import plot_positions, positional_encoding


@pytest.mark.parametrize("d_model", [2, 4, 128])
def test_at_the_papers_base_it_equals_sinusoid(d_model):
    expected = sinusoid(torch.arange(50), d_model).numpy()
    np.testing.assert_allclose(positional_encoding(50, d_model), expected, atol=1e-7)


def test_at_base_100_each_value_follows_the_formula():
    found = positional_encoding(4, 4, base=100)
    for position, dimension in np.ndindex(4, 4):
        angle = position / 100 ** (2 * (dimension // 2) / 4)
        assert found[position, dimension] == pytest.approx((math.sin, math.cos)[dimension % 2](angle))


@pytest.mark.parametrize(
    ("d_model", "base", "message"), [(3, 100, "d_model=3"), (4, 1, "base=1"), (4, math.nan, "base=nan")]
)
def test_impossible_dimensions_and_bases_are_refused(d_model, base, message):
    with pytest.raises(ValueError, match=message):
        positional_encoding(4, d_model, base)


def test_values_are_written_where_they_fit():
    words = ["I", "am", "a", "robot"]
    axes = plot_positions(positional_encoding(4, 4, 100), words, 100).axes[0]
    assert [text.get_text() for text in axes.texts] == [
        f"{value:.2f}".replace("-", "−") for value in positional_encoding(4, 4, 100).flatten()
    ]
    assert [label.get_text().split()[0] for label in axes.get_yticklabels()] == words
    assert plot_positions(positional_encoding(50, 128), None, 10000).axes[0].texts[:] == []


def test_empty_and_too_long_sentences_are_refused():
    with pytest.raises(ValueError, match="the sentence is empty"):
        plot_positions(positional_encoding(0, 4), [], 100)
    with pytest.raises(ValueError, match="2,000 positions .* 200 positions"):
        plot_positions(positional_encoding(2000, 4), ["a"] * 2000, 100)
