# SPDX-License-Identifier: Apache-2.0
"""Whether a model's probabilities hold: the reliability diagram of Guo et al. (2017, arXiv:1706.04599)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from vanilla_transformer.visualization.style import FONT_SIZE, REFERENCE_LINE, empty_figure, label_axes, series_styles


@dataclass(frozen=True)
class Calibration:
    """Tokens in bins of equal width by their probability; bins without tokens are left out.

    Args:
        confidence: the mean probability in each bin.
        accuracy: the share of correct tokens in each bin.
        counts: tokens in each bin.
        error: the expected calibration error, the mean of |accuracy - confidence| over all tokens.
    """

    confidence: list[float]
    accuracy: list[float]
    counts: list[int]
    error: float


def calibration(tokens: Sequence[tuple[float, bool]], bins: int = 20) -> Calibration:
    """The calibration of (probability of the most probable token, whether it is the right one).

    Raises:
        ValueError: no tokens.
    """
    if not tokens:
        raise ValueError("a calibration needs at least one token")
    probabilities, is_correct = np.array(tokens, dtype=float).T
    places = np.minimum((probabilities * bins).astype(int), bins - 1)
    counts = np.bincount(places, minlength=bins)
    filled = counts > 0
    confidence = np.bincount(places, probabilities, bins)[filled] / counts[filled]
    accuracy = np.bincount(places, is_correct, bins)[filled] / counts[filled]
    error = float((np.abs(accuracy - confidence) * counts[filled]).sum() / len(tokens))
    return Calibration(confidence.tolist(), accuracy.tolist(), counts[filled].tolist(), error)


def plot_calibration(bins: Calibration) -> Figure:
    """The share of correct tokens against their probability, and the number of tokens, for each bin."""
    style = series_styles(["model"])["model"]
    figure, (curve, histogram) = empty_figure(1, 2, (16, 7))
    curve.plot([0, 1], [0, 1], label="perfect", **REFERENCE_LINE)
    curve.plot(bins.confidence, bins.accuracy, label=f"model, error {bins.error:.3f}", **style.line)
    curve.legend(frameon=False, fontsize=FONT_SIZE)
    label_axes(curve, "the most probable token", "its probability", "share that is the target's")
    histogram.bar(bins.confidence, bins.counts, width=0.04, **style.bar)
    histogram.set_yscale("symlog", linthresh=1)
    label_axes(histogram, "how often", "its probability", "tokens")
    return figure
