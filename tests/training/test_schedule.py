# SPDX-License-Identifier: Apache-2.0
"""Section 5.3, equation 3, derived anew."""

import pytest
import torch

from vanilla_transformer.training.schedule import learning_rate, paper_schedule


@pytest.mark.parametrize(("d_model", "peak"), [(512, 6.988e-4), (1024, 4.941e-4)])
def test_peak_of_the_papers_models(d_model: int, peak: float):
    assert learning_rate(4000, d_model, 4000) == pytest.approx(peak, rel=1e-3)


def test_rises_in_a_straight_line():
    rates = [learning_rate(step, 512, 4000) for step in range(1, 4001)]
    assert rates == pytest.approx([rates[-1] * step / 4000 for step in range(1, 4001)])


def test_falls_with_the_root_of_the_step():
    peak = learning_rate(4000, 512, 4000)
    assert learning_rate(16_000, 512, 4000) == pytest.approx(peak / 2)
    assert learning_rate(100_000, 512, 4000) == pytest.approx(peak / 5)


def test_scale_is_a_factor():
    assert learning_rate(77, 64, 100, scale=3.0) == pytest.approx(3 * learning_rate(77, 64, 100))


def test_first_update_has_the_rate_of_step_1():
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = paper_schedule(optimizer, d_model=64, warmup_steps=3)
    rates = []
    for _ in range(5):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    expected = [64**-0.5 * min(step**-0.5, step / 3**1.5) for step in (1, 2, 3, 4, 5)]
    assert rates == pytest.approx(expected)
