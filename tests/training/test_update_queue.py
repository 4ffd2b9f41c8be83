# SPDX-License-Identifier: Apache-2.0
"""Where the host waits for the device in an update, and what comes round by the clock."""

import traceback
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from vanilla_transformer import training
from vanilla_transformer.training import loop, update_queue
from vanilla_transformer.training.checkpoint import list_checkpoints
from vanilla_transformer.training.train_state import Progress
from vanilla_transformer.training.update_queue import Interval, UpdateQueue

FOLDER = str(Path(training.__file__).parent)


class Reads(TorchDispatchMode):
    """Where this package's training reads a tensor's value, which on a GPU waits for it."""

    def __init__(self):
        super().__init__()
        self.lines: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket is torch.ops.aten._local_scalar_dense:
            frame = traceback.extract_stack()[-2]
            if frame.filename.startswith(FOLDER):
                self.lines.append(f"{frame.filename}:{frame.lineno}")
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("clipping", ["null", "0.5"])
def test_an_update_reads_its_results_once_and_after_the_next_has_been_queued(tiny_run, monkeypatch, clipping):
    events, step, backward = [], update_queue.step, loop.backward
    read = update_queue._Queued.read
    monkeypatch.setattr(update_queue, "step", lambda *a: events.append("step") or step(*a))
    monkeypatch.setattr(loop, "backward", lambda *a: events.append("backward") or backward(*a))
    monkeypatch.setattr(update_queue._Queued, "read", lambda self: events.append("read") or read(self))
    with Reads() as reads:
        tiny_run.train(f"optimizer.max_grad_norm={clipping}", "training.checkpoint_every=1000")
    assert reads.lines == []
    assert events == ["backward", "step"] + 7 * ["backward", "step", "read"] + ["read"]


def test_the_rate_decays_by_the_clock(tiny_run, monkeypatch):
    """The clock moves on by a second with each update, and the rate follows what the last settled update has sent."""
    now, sent, step = [0.0], [], torch.optim.Adam.step
    monkeypatch.setattr(update_queue, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def record(self, *arguments):
        sent.append(float(self.param_groups[0]["lr"]))
        now[0] += 1
        return step(self, *arguments)

    monkeypatch.setattr(torch.optim.Adam, "step", record)
    options = ["training.max_updates=null", "training.max_minutes=0.5", "optimizer.warmup_steps=4"]
    tiny_run.train(*options, "optimizer.schedule=linear", "training.checkpoint_every=1000")
    peak = (16 * 4) ** -0.5
    assert sent[:4] == pytest.approx([peak * step / 4 for step in (1, 2, 3, 4)])
    # The update after `done` ones goes by the seconds at which the last but one was sent: done - 2.
    lengths = [(done, done * 30 / (done - 2)) for done in range(5, len(sent))]
    assert sent[5:] == pytest.approx([peak * (length - done) / (length - 4) for done, length in lengths])
    assert 30 <= len(sent) <= 31


def test_updates_are_settled_before_a_checkpoint_and_a_validation(tiny_run, monkeypatch):
    pending, queues, validate = [], [], loop.validate

    class Queue(UpdateQueue):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            queues.append(self)

    monkeypatch.setattr(loop, "UpdateQueue", Queue)
    monkeypatch.setattr(loop, "validate", lambda run: pending.append(len(queues[0].pending)) or validate(run))
    tiny_run.train(*tiny_run.validation(), "training.validate_every=3")
    assert pending == [0, 0, 0]  # after 3 and 6 updates, and at the end


def test_an_interval_in_minutes_counts_from_the_last_time():
    progress = Progress(seconds=100.0)
    interval = Interval(progress, None, 2.0)
    assert not interval.is_at(1000)
    assert not interval.is_due(219.0)
    assert interval.is_due(220.0)
    progress.seconds = 230.0
    with interval.timed():
        pass
    assert not interval.is_due(349.0)
    assert interval.is_due(350.0)


def test_what_comes_round_by_minutes_takes_at_most_three_percent_of_the_time():
    interval = Interval(Progress(), None, 1.0)
    interval.cost = 6.0
    assert not interval.is_due(199.0)
    assert interval.is_due(200.0)


def test_an_interval_without_minutes_is_never_due():
    interval = Interval(Progress(), 5, None)
    assert [updates for updates in range(1, 12) if interval.is_at(updates)] == [5, 10]
    assert not interval.is_due(1e9)


def test_validation_and_checkpoints_come_by_minutes(tiny_run, monkeypatch):
    seconds = iter(range(0, 10_000_000, 40))  # a clock that each look moves on by 40 seconds
    monkeypatch.setattr(update_queue, "time", SimpleNamespace(perf_counter=lambda: float(next(seconds))))
    monkeypatch.setattr(update_queue, "MAX_SHARE", 1e9)
    validated, validate = [], loop.validate
    monkeypatch.setattr(loop, "validate", lambda run: validated.append(run.state.progress.updates) or validate(run))
    options = ["training.validate_every=null", "training.checkpoint_every=null", "training.max_updates=6"]
    options += ["training.validate_every_minutes=1", "training.checkpoint_every_minutes=1", "training.log_every=1000"]
    run = tiny_run.train(*tiny_run.validation(), *options)
    assert len(validated) > 2
    assert len(list_checkpoints(run.output_dir / "checkpoints")) > 1
