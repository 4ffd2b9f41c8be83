# SPDX-License-Identifier: Apache-2.0
from contextlib import nullcontext

import pytest

from vanilla_transformer.benchmark import timing
from vanilla_transformer.benchmark.configuration import TimingConfig
from vanilla_transformer.benchmark.timing import measure_in_turns


class Clock:
    """Time that passes only where it is said to."""

    def __init__(self, monkeypatch):
        self.now, self.calls = 0.0, []
        monkeypatch.setattr(timing.time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(timing.time, "sleep", self.pass_)

    def pass_(self, seconds: float) -> None:
        self.now += seconds


def fake(name: str, clock: Clock, seconds: float):
    def call(steps: int) -> str:
        clock.calls.append(name)
        clock.pass_(seconds * steps)
        return f"{name} did {steps}"

    return lambda: nullcontext(call)


@pytest.fixture
def clock(monkeypatch) -> Clock:
    return Clock(monkeypatch)


def test_systems_take_turns_and_each_is_warmed_up(clock):
    systems = {"a": fake("a", clock, 1.0), "b": fake("b", clock, 2.0)}
    found = measure_in_turns(systems, 1, TimingConfig(repeats=2, pause=0.25, fill=0.25))
    assert "".join(clock.calls) == "aabb" + "aabb"
    assert (found["a"].seconds, found["b"].seconds) == ([1.0, 1.0], [2.0, 2.0])


def test_short_calls_are_repeated_until_they_fill_the_time(clock):
    found = measure_in_turns({"a": fake("a", clock, 0.0625)}, 1, TimingConfig(repeats=1, pause=0.0, fill=0.25))
    assert len(clock.calls) == 1 + 4
    assert found["a"].median == pytest.approx(0.0625)


def test_the_warm_up_is_the_first_step_alone(clock):
    found = measure_in_turns({"a": fake("a", clock, 1.0)}, 5, TimingConfig(repeats=1, pause=0.0, fill=3.0))
    assert clock.now == 1.0 + 5.0
    assert (found["a"].seconds, found["a"].result) == ([5.0], "a did 5")
