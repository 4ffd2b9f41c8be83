# SPDX-License-Identifier: Apache-2.0
"""Measuring contenders in turns, so that whatever else slows the machine slows all of them alike."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

from vanilla_transformer.benchmark.configuration import TimingConfig
from vanilla_transformer.benchmark.systems import Batch, Contender, Decoding, Run


@dataclass
class Measurement:
    """Of one contender: seconds of a call in each round, and the targets that it found."""

    seconds: list[float] = field(default_factory=list)
    targets: list[list[int]] = field(default_factory=list)

    @property
    def median(self) -> float:
        return median(self.seconds)


def measure_in_turns(
    contenders: Sequence[Contender], batches: list[Batch], decoding: Decoding, timing: TimingConfig
) -> dict[str, Measurement]:
    """Every contender once in each round; name → what it took and found.

    Args:
        batches: the largest first.

    Raises:
        RuntimeError: targets that are not as long as they have to be, with which speeds would not be comparable.
    """
    found = {one.name: Measurement() for one in contenders}
    for _ in range(timing.repeats):
        for contender in contenders:
            with contender.ready(batches, decoding) as run:
                time.sleep(timing.pause)
                start = time.perf_counter()
                run(1)  # pays for kernels and memory of the first batch, the largest
                estimate = (time.perf_counter() - start) * len(batches)
                seconds, targets = _seconds_of_call(run, len(batches), math.ceil(timing.fill / estimate))
            if decoding.is_exact:
                _check_lengths(contender.name, targets, batches)
            found[contender.name].seconds.append(seconds)
            found[contender.name].targets = targets
    return found


def _seconds_of_call(run: Run, batches: int, calls: int) -> tuple[float, list[list[int]]]:
    """The mean of some calls in a row, one at least, and what the last one found."""
    calls, targets = max(1, calls), []
    start = time.perf_counter()
    for _ in range(calls):
        targets = run(batches)  # lists on the CPU: nothing is computed any more when it returns
    return (time.perf_counter() - start) / calls, targets


def _check_lengths(name: str, targets: list[list[int]], batches: list[Batch]) -> None:
    expected = [batch.longest for batch in batches for _ in batch.sources]
    lengths = [len(target) for target in targets]
    if lengths != expected:
        raise RuntimeError(f"{name} decoded {sum(lengths)} tokens where {sum(expected)} were asked for")
