# SPDX-License-Identifier: Apache-2.0
import time
from types import SimpleNamespace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from vanilla_transformer.training import flops
from vanilla_transformer.training.flops import sustained_flops

CPU = torch.device("cpu")


class Clock:
    """In place of torch's timer: counts the operations of one execution, and says that it took 2 seconds."""

    def __init__(self, statement: str, globals: dict, num_threads: int):
        with FlopCounterMode(display=False) as counter:
            product = eval(statement, globals)
        Clock.seen = SimpleNamespace(flops=counter.get_total_flops(), dtype=product.dtype, threads=num_threads)

    def blocked_autorange(self) -> SimpleNamespace:
        return SimpleNamespace(median=2.0)


def test_flops_are_operations_over_time(monkeypatch):
    monkeypatch.setattr(flops, "Timer", Clock)
    assert sustained_flops(CPU, "no") == Clock.seen.flops / 2


@pytest.mark.parametrize(("precision", "dtype"), [("no", torch.float32), ("bf16", torch.bfloat16)])
def test_flops_are_of_the_runs_precision_and_threads(monkeypatch, precision: str, dtype: torch.dtype):
    monkeypatch.setattr(flops, "Timer", Clock)
    sustained_flops(CPU, precision)
    assert (Clock.seen.dtype, Clock.seen.threads) == (dtype, torch.get_num_threads())


def test_flops_agree_with_a_clock():
    """In the order of magnitude: what else runs on the machine may slow either."""
    measured = sustained_flops(CPU, "no")
    matrix = torch.rand(1024, 1024)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        matrix @ matrix
        times.append(time.perf_counter() - start)
    assert 0.1 < measured * min(times) / (2 * 1024**3) < 10


def test_measuring_flops_draws_no_random_number():
    before = torch.get_rng_state()
    sustained_flops(CPU, "no")
    assert torch.equal(torch.get_rng_state(), before)
