# SPDX-License-Identifier: Apache-2.0
"""The updates of a whole run, on which a learning rate that decays to its end depends."""

import pytest

from vanilla_transformer.data.batches import TokenBatchSampler
from vanilla_transformer.training.configuration import TrainingConfig
from vanilla_transformer.training.optimizer import RunLength
from vanilla_transformer.training.schedule import decay
from vanilla_transformer.training.train_state import Progress


def run_length(progress: Progress, processes: int = 1, **ends) -> RunLength:
    """The length of a run with 40 batches of one pair in an epoch."""
    training = TrainingConfig(output_dir="run", **ends)
    sampler = TokenBatchSampler(
        [5] * 40, [5] * 40, max_source_tokens=5, max_target_tokens=5, seed=1, num_processes=processes
    )
    return RunLength(training, sampler, progress)


def test_the_first_end_counts():
    progress = Progress(pairs=40, agreed_seconds=30.0)
    assert run_length(progress, max_updates=70).expected(10) == 70
    assert run_length(progress, max_updates=90, max_epochs=2).expected(10) == 80
    assert run_length(progress, max_updates=90, max_minutes=2.0).expected(10) == 40  # 3 seconds an update
    assert run_length(progress, max_updates=30, max_minutes=2.0).expected(10) == 30
    assert str(run_length(progress, max_updates=9000, max_minutes=1.5)) == "9,000 updates or 1.5 minutes"


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_at_constant_speed_a_decay_by_the_clock_is_that_by_updates(kind: str):
    progress = Progress()
    length = run_length(progress, max_minutes=1.0)
    for done in range(1, 121):
        progress.agreed_seconds = done / 2  # the minute has 120 updates
        assert decay(kind, done, 20, length.expected(done)) == pytest.approx(decay(kind, done, 20, 120), abs=1e-12)


def test_a_decay_by_the_clock_ends_at_zero_whatever_the_speed():
    progress = Progress()
    length, factors = run_length(progress, max_minutes=1.0), []
    for done in range(20, 101):
        progress.agreed_seconds = done / 4 if done < 50 else 12.5 + (done - 50) * 0.95  # it becomes four times as slow
        factors.append(decay("linear", done, 20, length.expected(done)))
    assert factors == sorted(factors, reverse=True)
    assert (factors[0], factors[-1]) == (1.0, 0.0)


def test_a_clock_that_has_not_begun_is_far_from_its_end():
    assert decay("linear", 0, 0, run_length(Progress(), max_minutes=1.0).expected(0)) == 1.0
    assert decay("linear", 1, 0, run_length(Progress(), max_minutes=1.0).expected(1)) == pytest.approx(1.0, abs=1e-4)


def test_epochs_are_counted_from_where_the_number_of_processes_changed():
    """After 60 updates of one process, an epoch and a half, two of them have 30 updates in the other one and a half."""
    progress = Progress(pairs=40, begun_epoch=1, begun_pairs=20, begun_updates=60)
    assert run_length(progress, processes=2, max_epochs=3).planned() == 60 + 30
