# SPDX-License-Identifier: Apache-2.0
from contextlib import contextmanager

import pytest

from vanilla_transformer.benchmark import timing
from vanilla_transformer.benchmark.configuration import TimingConfig
from vanilla_transformer.benchmark.systems import Batch, Decoding
from vanilla_transformer.benchmark.timing import measure_in_turns

BATCHES = [Batch([[5, 6], [7, 8]], max_new_tokens=3)]
FIXED_LENGTH = Decoding(beams=1, is_fixed_length=True, alpha=0.0, length_penalty=0.0)


class Clock:
    """Time that passes only where it is said to."""

    def __init__(self, monkeypatch):
        self.now, self.calls = 0.0, []
        monkeypatch.setattr(timing.time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(timing.time, "sleep", self.pass_)

    def pass_(self, seconds: float) -> None:
        self.now += seconds


class Fake:
    def __init__(self, name: str, clock: Clock, seconds: float, length: int = 3):
        self.name, self.clock, self.seconds, self.length = name, clock, seconds, length

    @contextmanager
    def prepare(self, batches, decoding):
        def decode(count):
            self.clock.calls.append(self.name)
            self.clock.pass_(self.seconds * count)
            return [[1] * self.length for batch in batches[:count] for _ in batch.sources]

        yield decode


@pytest.fixture
def clock(monkeypatch) -> Clock:
    return Clock(monkeypatch)


def test_systems_take_turns_and_each_is_warmed_up(clock):
    systems = [Fake("a", clock, 1.0), Fake("b", clock, 2.0)]
    found = measure_in_turns(systems, BATCHES, FIXED_LENGTH, TimingConfig(repeats=2, pause=0.25, fill=0.25))
    assert "".join(clock.calls) == "aabb" + "aabb"
    assert (found["a"].seconds, found["b"].seconds) == ([1.0, 1.0], [2.0, 2.0])


def test_short_calls_are_repeated_until_they_fill_the_time(clock):
    found = measure_in_turns(
        [Fake("a", clock, 0.0625)], BATCHES, FIXED_LENGTH, TimingConfig(repeats=1, pause=0.0, fill=0.25)
    )
    assert len(clock.calls) == 1 + 4
    assert found["a"].median == pytest.approx(0.0625)


def test_the_warm_up_is_the_first_batch_alone(clock):
    several = BATCHES * 5
    found = measure_in_turns(
        [Fake("a", clock, 1.0)], several, FIXED_LENGTH, TimingConfig(repeats=1, pause=0.0, fill=3.0)
    )
    assert clock.now == 1.0 + 5.0
    assert found["a"].seconds == [5.0]


def test_targets_of_another_length_are_no_measurement(clock):
    with pytest.raises(RuntimeError, match="a decoded 4 tokens where 6 were asked for"):
        measure_in_turns(
            [Fake("a", clock, 1.0, length=2)], BATCHES, FIXED_LENGTH, TimingConfig(repeats=1, pause=0.0, fill=0.0)
        )
