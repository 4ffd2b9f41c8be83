# SPDX-License-Identifier: Apache-2.0
"""Calibration by hand, and its plot."""

import pytest

from vanilla_transformer.visualization.calibration import calibration, plot_calibration

TOKENS = [(0.1, False), (0.2, True), (0.9, True), (0.8, True), (0.7, False), (1.0, True)]


def test_error_is_the_mean_distance_of_confidence_and_accuracy():
    bins = calibration(TOKENS, bins=2)
    assert bins.counts == [2, 4]
    assert bins.confidence == pytest.approx([0.15, 0.85])
    assert bins.accuracy == pytest.approx([0.5, 0.75])
    assert bins.error == pytest.approx((2 * 0.35 + 4 * 0.10) / 6)


def test_plot_shows_every_bin():
    bins = calibration(TOKENS, bins=10)
    curve, histogram = plot_calibration(bins).axes
    assert list(curve.lines[1].get_xdata()) == bins.confidence
    assert list(curve.lines[1].get_ydata()) == bins.accuracy
    assert [bar.get_height() for bar in histogram.patches] == bins.counts


def test_no_tokens_are_refused():
    with pytest.raises(ValueError, match="a calibration needs at least one token"):
        calibration([])
