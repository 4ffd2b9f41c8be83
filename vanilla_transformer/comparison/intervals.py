# SPDX-License-Identifier: Apache-2.0
"""Confidence intervals of differences that hold together: Student's t with Bonferroni's correction (Dunn, 1961)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from statistics import mean, variance

CONFIDENCE_LEVEL = 0.95  # of all intervals of a verdict together
MAX_DEGREES_OF_FREEDOM = 1000  # more would narrow an interval by less than 1%


@dataclass(frozen=True)
class Difference:
    """An estimated difference; (estimate - truth) / standard error has Student's t distribution.

    The degrees of freedom are those of the standard error, infinite where it is known. With fewer than one, nothing is
    known about the standard error, and the interval is everything.
    """

    value: float
    standard_error: float
    degrees_of_freedom: float


def paired_difference(differences: Sequence[float]) -> Difference:
    """The mean of paired differences (the paired t-test)."""
    count = len(differences)
    spread = variance(differences) if count > 1 else 0.0
    return Difference(mean(differences), math.sqrt(spread / count), count - 1)


def difference_of_means(own: Sequence[float], other: Sequence[float], known_variance: float = 0.0) -> Difference:
    """The mean of one sample minus the mean of another, whose variances may differ (Welch, 1947).

    Args:
        known_variance: is added to the variance of the difference.
    """
    value, shares = mean(own) - mean(other), []  # shares: the variances of both means
    for sample in (own, other):
        if len(sample) < 2:
            return Difference(value, 0.0, 0)
        shares.append((variance(sample) / len(sample), len(sample) - 1))
    total = known_variance + sum(share for share, _ in shares)
    uncertainty = sum(share**2 / freedom for share, freedom in shares)
    return Difference(value, math.sqrt(total), total**2 / uncertainty if uncertainty else math.inf)


def simultaneous_intervals(differences: Sequence[Difference]) -> list[tuple[float, float]]:
    """(low, high) of each difference: with 95% confidence, all hold the true difference."""
    intervals = []
    for difference in differences:
        margin = math.inf
        if difference.degrees_of_freedom >= 1:
            freedom = int(min(difference.degrees_of_freedom, MAX_DEGREES_OF_FREEDOM))  # rounded down: wider
            margin = t_quantile(1 - (1 - CONFIDENCE_LEVEL) / len(differences), freedom) * difference.standard_error
        intervals.append((difference.value - margin, difference.value + margin))
    return intervals


@cache
def t_quantile(level: float, degrees_of_freedom: int) -> float:
    """The t that Student's |T| stays below with this probability.

    It is sought by bisection over the angle arctan(t / sqrt(degrees of freedom)).
    """
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        angle = (low + high) / 2
        low, high = (angle, high) if _probability_within(angle, degrees_of_freedom) < level else (low, angle)
    return math.sqrt(degrees_of_freedom) * math.tan(low)


def _probability_within(angle: float, degrees_of_freedom: int) -> float:
    """The probability that |T| < sqrt(degrees of freedom) tan(angle): Abramowitz and Stegun (1964), 26.7.3 and 4."""
    is_odd = degrees_of_freedom % 2
    term, total = math.cos(angle) if is_odd else 1.0, 0.0
    for i in range(2 + is_odd, degrees_of_freedom + 1, 2):
        total += term
        term *= (i - 1) / i * math.cos(angle) ** 2
    return (angle + math.sin(angle) * total) * 2 / math.pi if is_odd else math.sin(angle) * total
