# SPDX-License-Identifier: Apache-2.0
"""Timing systems in turns, so that whatever else slows the machine slows all of them alike."""

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from vanilla_transformer.benchmark.configuration import TimingConfig


@dataclass
class Measurement:
    """Seconds per call of one system in each round, and what its last call returned."""

    seconds: list[float] = field(default_factory=list)
    result: Any = None

    @property
    def median(self) -> float:
        return median(self.seconds)


def measure_in_turns(
    systems: Mapping[str, Callable[[], AbstractContextManager[Callable[[int], Any]]]],
    steps: int,
    timing: TimingConfig,
    warms_up: bool = True,
) -> dict[str, Measurement]:
    """Time every system once in each round (A B A B); returns a measurement for each name.

    Args:
        systems: name → what prepares the system. The context manager gives a function that does the first n steps, and
            frees the system afterwards.
        steps: of one call, such as batches or updates.
        warms_up: each timing first does the first step, which should need the most memory.
    """
    found = {name: Measurement() for name in systems}
    for _ in range(timing.repeats):
        for name, prepare in systems.items():
            with prepare() as call:
                time.sleep(timing.pause)
                if warms_up:
                    call(1)  # selects kernels, and allocates memory
                start, calls, elapsed = time.perf_counter(), 0, 0.0
                while not calls or elapsed < timing.fill:
                    found[name].result = call(steps)
                    calls, elapsed = calls + 1, time.perf_counter() - start
                found[name].seconds.append(elapsed / calls)
    return found
