# SPDX-License-Identifier: Apache-2.0
"""The plot of a preparation shows every count."""

from tests.preparation.example_results import example_results
from vanilla_transformer.visualization.preparation import plot_preparation


def test_bars_are_the_dropped_pairs_of_all_corpora():
    axes = plot_preparation(example_results(), 10).axes[0]
    names = [label.get_text() for label in axes.get_yticklabels()]
    widths = [bar.get_width() for bar in axes.patches]
    counts = dict.fromkeys(example_results()["samples"], 1) | {"script": 4}
    assert dict(zip(names, widths, strict=True)) == counts


def test_histograms_have_the_lengths_of_each_side():
    results = example_results()
    for axes, side in zip(plot_preparation(results, 10).axes[1:], ("source", "target"), strict=True):
        steps = {patch.get_label(): patch.get_data() for patch in axes.patches}
        for state in ("read", "kept"):
            assert list(steps[state].values) == results["lengths"][state][side]
            assert list(steps[state].edges[:3]) == [0, 10, 20]
