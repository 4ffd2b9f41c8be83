# SPDX-License-Identifier: Apache-2.0
"""Timing systems in turns, so that whatever else slows the machine slows all of them alike."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

from vanilla_transformer.benchmark.configuration import TimingConfig
from vanilla_transformer.benchmark.systems import Batch, Decoding, System


@dataclass
class Measurement:
    """Seconds per call of one system in each round, and the targets that it found."""

    seconds: list[float] = field(default_factory=list)
    targets: list[list[int]] = field(default_factory=list)

    @property
    def median(self) -> float:
        return median(self.seconds)


def measure_in_turns(
    systems: Sequence[System], batches: list[Batch], decoding: Decoding, timing: TimingConfig
) -> dict[str, Measurement]:
    """Time every system once in each round; returns a measurement for each name.

    Args:
        batches: the largest first.

    Raises:
        RuntimeError: targets of another length than asked for, with which speeds would not be comparable.
    """
    found = {system.name: Measurement() for system in systems}
    for _ in range(timing.repeats):
        for system in systems:
            measurement = found[system.name]
            with system.prepare(batches, decoding) as decode:
                time.sleep(timing.pause)
                start = time.perf_counter()
                decode(1)  # warm-up: selects kernels, and allocates memory for the first batch, the largest
                estimate = (time.perf_counter() - start) * len(batches)
                calls = max(1, math.ceil(timing.fill / estimate))
                start = time.perf_counter()
                for _ in range(calls):
                    measurement.targets = decode(len(batches))
                measurement.seconds.append((time.perf_counter() - start) / calls)
            if decoding.is_fixed_length:
                _check_lengths(system.name, measurement.targets, batches)
    return found


def _check_lengths(name: str, targets: list[list[int]], batches: list[Batch]) -> None:
    expected = [batch.max_new_tokens for batch in batches for _ in batch.sources]
    lengths = [len(target) for target in targets]
    if lengths != expected:
        raise RuntimeError(f"{name} decoded {sum(lengths)} tokens where {sum(expected)} were asked for")
