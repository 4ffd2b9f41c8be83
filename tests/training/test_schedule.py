# SPDX-License-Identifier: Apache-2.0
"""Section 5.3, equation 3, derived anew."""

from typing import Any

import pytest
import torch
from transformers import get_scheduler

from vanilla_transformer.training.schedule import decaying_schedule, follow_run_length, learning_rate, paper_schedule


def adam(lr: float = 1.0) -> torch.optim.Optimizer:
    return torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=lr)


def rates_of(schedule: Any, updates: int) -> list[float]:
    """The rate of each update, from 0 on."""
    rates = []
    for _ in range(updates):
        rates.append(schedule.optimizer.param_groups[0]["lr"])
        schedule.optimizer.step()
        schedule.step()
    return rates


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
    rates = rates_of(paper_schedule(adam(), d_model=64, warmup_steps=3), 5)
    expected = [64**-0.5 * min(step**-0.5, step / 3**1.5) for step in (1, 2, 3, 4, 5)]
    assert rates == pytest.approx(expected)


@pytest.mark.parametrize("warmup", [0, 7])
@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_a_decay_is_that_of_transformers_to_the_bit(kind: str, warmup: int):
    rates = rates_of(decaying_schedule(adam(0.3), kind, warmup, lambda done: 31, first_step=0), 32)
    assert rates == rates_of(get_scheduler(kind, adam(0.3), warmup, 31), 32)


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_a_warm_up_from_step_1_has_no_update_of_rate_0(kind: str):
    rates = rates_of(decaying_schedule(adam(), kind, 7, lambda done: 31, first_step=1), 31)
    expected = rates_of(get_scheduler(kind, adam(), 7, 31), 31)
    assert rates == expected[1:8] + expected[7:]
    assert min(rates) > 0


def test_the_next_update_has_the_rate_of_a_new_end():
    length = 20
    schedule = decaying_schedule(adam(), "linear", 4, lambda done: length, first_step=1)
    rates_of(schedule, 12)
    assert follow_run_length(schedule) == (0.5, 0.5)
    length = 36
    assert follow_run_length(schedule) == (0.5, 0.75)
    assert rates_of(schedule, 24) == pytest.approx([(36 - done) / 32 for done in range(12, 36)])
