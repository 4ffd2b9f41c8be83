# SPDX-License-Identifier: Apache-2.0
"""Intervals against published tables, other formulas and their coverage."""

import math
import random

import pytest

from vanilla_transformer.comparison.intervals import (
    Difference,
    difference_of_means,
    paired_difference,
    simultaneous_intervals,
    t_quantile,
)


@pytest.mark.parametrize(
    ("level", "degrees_of_freedom", "published"),  # any table of Student's t, two-sided
    [(0.95, 1, 12.706), (0.99, 2, 9.925), (0.95, 4, 2.776), (0.999, 5, 6.869), (0.95, 7, 2.365), (0.99, 30, 2.750)],
)
def test_t_quantiles_are_those_of_the_tables(level: float, degrees_of_freedom: int, published: float):
    assert t_quantile(level, degrees_of_freedom) == pytest.approx(published, abs=6e-4)


def test_paired_differences_have_the_spread_of_their_mean():
    difference = paired_difference([1.0, 2.0, 3.0, 6.0])
    assert difference == Difference(3.0, math.sqrt((4 + 1 + 0 + 9) / 3 / 4), 3)


def test_equal_samples_have_the_degrees_of_freedom_of_both():
    difference = difference_of_means([1.0, 2.0, 3.0], [5.0, 4.0, 3.0])
    assert difference.value == -2
    assert difference.degrees_of_freedom == pytest.approx(4)
    assert difference.standard_error == pytest.approx(math.sqrt(1 / 3 + 1 / 3))


def test_a_sample_without_spread_adds_no_degrees_of_freedom():
    assert difference_of_means([7.0] * 9, [1.0, 2.0, 3.0]).degrees_of_freedom == pytest.approx(2)


def test_known_variance_widens_and_adds_degrees_of_freedom():
    plain, widened = (difference_of_means([1.0, 2.0, 3.0], [1.0, 2.0, 3.0], known) for known in (0.0, 1.0))
    assert widened.standard_error**2 == pytest.approx(plain.standard_error**2 + 1)
    assert widened.degrees_of_freedom > plain.degrees_of_freedom
    assert difference_of_means([4.0, 4.0], [3.0, 3.0], 1.0) == Difference(1.0, 1.0, math.inf)


@pytest.mark.parametrize("difference", [paired_difference([3.0]), difference_of_means([3.0], [1.0, 1.0])])
def test_one_value_says_nothing(difference: Difference):
    assert simultaneous_intervals([difference]) == [(-math.inf, math.inf)]


def test_an_interval_of_many_is_the_interval_at_the_corrected_level():
    known = Difference(1.0, 2.0, math.inf)
    (alone,), (low, high), *_ = simultaneous_intervals([known]), *simultaneous_intervals([known] * 5)
    assert alone == pytest.approx((1 - 2 * 1.96, 1 + 2 * 1.96), abs=0.02)  # the normal distribution at 95%
    assert (low, high) == pytest.approx((1 - 2 * 2.576, 1 + 2 * 2.576), abs=0.03)  # at 99%


def test_all_intervals_hold_as_often_as_they_say():
    rng, trials, held = random.Random(1), 400, 0
    for _ in range(trials):
        differences = [
            difference_of_means([rng.gauss(2, 3) for _ in range(5)], [rng.gauss(2, 1) for _ in range(5)])
            for _ in range(10)
        ]
        held += all(low < 0 < high for low, high in simultaneous_intervals(differences))
    assert 0.92 < held / trials < 0.99  # 95%, four standard errors of 400 trials being 4%
