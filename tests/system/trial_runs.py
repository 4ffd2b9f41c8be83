# SPDX-License-Identifier: Apache-2.0
"""Runs that faults happen to: the installed command on a tiny corpus, each start of it in a process of its own."""

import gc
import json
import multiprocessing
import os
import random
import re
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from tests.conftest import TinyRun
from tests.distributed.launching import free_port

MAX_UPDATES, CHECKPOINT_EVERY = 45, 3
OPTIONS = (f"training.max_updates={MAX_UPDATES}", f"training.checkpoint_every={CHECKPOINT_EVERY}")
PATIENCE = 900  # seconds for what takes two, after which it is taken to hang; the machine may have other things to do


class NotRun(Exception):
    """What this machine lacks for a trial."""


@dataclass
class Attempt:
    """One start of the command.

    Args:
        said: file with all that it has written, by Python or below it.
    """

    process: BaseProcess
    said: Path

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def is_going(self) -> bool:
        return self.process.exitcode is None

    def goes_on_for(self, seconds: float) -> bool:
        """Whether it is still going after that time."""
        self.process.join(seconds)
        return self.is_going()

    def goes_on_until(self, is_so: Callable[[], bool]) -> bool:
        """Whether that came about before the end."""
        deadline = time.perf_counter() + PATIENCE
        while self.is_going() and time.perf_counter() < deadline:
            if is_so():
                return True
            self.process.join(0.001)
        return False

    def stop(self, number: int = signal.SIGKILL) -> None:
        os.kill(self.pid, number)

    def status(self) -> int | None:
        """Of its end, which is waited for; `None` if it hangs, and then it is killed."""
        if self.goes_on_for(PATIENCE):
            self.stop()
            self.process.join()
            return None
        return self.process.exitcode

    def text(self) -> str:
        return self.said.read_text("utf-8", errors="replace") if self.said.exists() else ""

    def error(self) -> str:
        """The one line that tells a person what went wrong; empty if there are none, or several, or a traceback."""
        lines = re.findall(r"vanilla-transformer \w+: error: (.*)", self.text())
        return lines[0] if len(lines) == 1 and "Traceback" not in self.text() else ""

    def resumed_from(self) -> int:
        """Updates of the checkpoint that it says it has gone on from; 0 without one."""
        found = re.search(r"resuming from \S+: (\d+) updates", self.text())
        return int(found[1]) if found else 0


class TrialRun:
    """The same command again and again, in a folder of its own, until the run has come to its end.

    Args:
        options: overrides of the configuration.
        processes: how a start is made; by default forked from a server that has imported everything (`launching.py`).
    """

    def __init__(self, folder: Path, *options: str, processes: BaseContext | None = None):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.tiny = TinyRun(folder)
        self.output_dir = self.tiny.output_dir
        self.options = [*OPTIONS, *options]
        self.processes = processes or multiprocessing.get_context("forkserver")
        self.attempts = 0
        self.spoilt: dict[Path, bytes] = {}  # what trials have made of files of checkpoints

    def start(
        self,
        *options: str,
        change: Callable[[], object] | None = None,
        environment: Mapping[str, str] | None = None,
        arguments: Sequence[str] = (),
    ) -> Attempt:
        """Start the command, after a `change` to its process if there is to be one.

        Args:
            arguments: of the command line in place of those of this run's training.
        """
        self.attempts += 1
        said = self.folder / f"said-{self.attempts}"
        line = [*arguments] or ["train", str(self.tiny.config), *self.options, *options]
        process = self.processes.Process(target=_command, args=(said, line, change, dict(environment or {})))  # pyright: ignore[reportAttributeAccessIssue] -- each kind of context has it
        process.start()
        return Attempt(process, said)

    def start_two(self) -> list[Attempt]:
        """Two processes that train together, over gloo."""
        common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        return [self.start(environment=common | {"RANK": rank, "LOCAL_RANK": rank}) for rank in ("0", "1")]

    def checkpoints(self) -> list[Path]:
        """Those with their final name that no trial has spoilt, oldest first."""
        spoilt = {
            path.parent for path, content in self.spoilt.items() if path.is_file() and path.read_bytes() == content
        }
        return sorted(path for path in (self.output_dir / "checkpoints").glob("update-*") if path not in spoilt)

    def newest(self) -> int:
        """Updates of the newest of them; 0 without one."""
        found = self.checkpoints()
        return int(found[-1].name.removeprefix("update-")) if found else 0

    def is_writing(self) -> bool:
        return any((self.output_dir / "checkpoints").glob(".unfinished-*"))

    def progress(self) -> dict[str, Any]:
        """What the newest checkpoint says of it."""
        return json.loads((self.checkpoints()[-1] / "progress.json").read_text("utf-8"))

    def weights(self) -> dict[str, torch.Tensor]:
        """The finished model's; none if there is no such file."""
        file = self.output_dir / "model" / "model.safetensors"
        return load_file(file) if file.exists() else {}

    def has_weights_of(self, other: "TrialRun") -> bool:
        """To the bit."""
        found, expected = self.weights(), other.weights()
        return found.keys() == expected.keys() and all(found[name].equal(weight) for name, weight in expected.items())


def _has(path: Path, content: bytes) -> bool:
    try:
        return path.read_bytes() == content
    except FileNotFoundError:  # also between two looks
        return False


def _command(said: Path, line: list[str], change: Callable[[], object] | None, environment: dict[str, str]) -> None:
    descriptor = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    os.environ |= environment
    gc.freeze()  # what was imported before the fork, which a batch that is halved would look through each time
    # As in a process that a shell has started: the server that forks ignores the signal, and hands on its own way.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    multiprocessing.set_start_method("fork", force=True)
    torch.set_num_threads(1)
    from vanilla_transformer.cli import main

    if change is not None:
        change()
    sys.exit(main(line))


Change = Callable[[], object]


@dataclass
class Row:
    """What came of one kind of trial."""

    trials: int = 0
    survived: int = 0
    lost: int = 0  # updates beyond the last checkpoint
    wrong: int = 0  # runs that ended with other weights than the undisturbed one
    notes: list[str] = field(default_factory=list)


class Trials:
    """A folder for runs, the table of what came of them, and runs that nothing happens to."""

    def __init__(self, folder: Path, seed: int):
        self.folder, self.random = folder, random.Random(seed)
        self.rows: dict[str, Row] = {}
        self.not_run: dict[str, str] = {}  # kinds that this machine cannot have, and why
        self._undisturbed: dict[tuple, TrialRun] = {}
        self._made = 0

    def new_run(self, *options: str) -> TrialRun:
        self._made += 1
        return TrialRun(self.folder / f"run-{self._made}", *options)

    @cached_property
    def seconds(self) -> float:
        """Of an undisturbed run, when all is imported."""
        self.undisturbed()
        start, attempt = time.perf_counter(), self.new_run().start()
        assert attempt.status() == 0
        return time.perf_counter() - start

    def moment(self, most: float = 1.0) -> float:
        """Seconds, at random; at most such a share of a run's."""
        return self.random.uniform(0, most * self.seconds)

    def undisturbed(self, *options: str, change: Change | None = None, processes: int = 1) -> TrialRun:
        """A run that nothing happens to, made once for each configuration.

        Args:
            change: what makes it know beforehand of what happens to the others.
        """
        key = (options, repr(change), processes)
        if key not in self._undisturbed:
            run = self.new_run(*options)
            attempts = [run.start(change=change)] if processes == 1 else run.start_two()
            statuses = {attempt.status() for attempt in attempts}
            assert statuses == {0}, f"even an undisturbed run failed: {attempts[0].text()[-2000:]}"
            self._undisturbed[key] = run
        return self._undisturbed[key]

    def book(self, kind: str, *failures: str, lost: int = 0, wrong: bool = False) -> None:
        """One trial, which was survived if there is nothing to be said against it."""
        row = self.rows.setdefault(kind, Row())
        row.trials += 1
        row.lost += lost
        row.wrong += wrong
        row.notes += failures
        row.survived += not failures and not lost and not wrong

    def total(self) -> Row:
        rows = self.rows.values()
        trials, survived = sum(row.trials for row in rows), sum(row.survived for row in rows)
        return Row(trials, survived, lost=sum(row.lost for row in rows), wrong=sum(row.wrong for row in rows))


@dataclass
class _Suffered:
    kind: str
    failures: list[str]
    lost: int = 0


class Chain:
    """One run after the other, each of which suffers several faults before it comes to its end.

    A trial starts the command, and lets a fault `suffered` happen to it; the next one goes on from there. Each start
    must go on from the newest checkpoint, and the end be that of a run that nothing happened to.
    """

    def __init__(self, trials: Trials, *options: str):
        self.trials, self.options = trials, options
        self.expected = trials.undisturbed(*options)
        self._begin()

    def _begin(self) -> None:
        self.run = self.trials.new_run(*self.options)
        self._faults: list[_Suffered] = []
        self._attempt: Attempt | None = None
        self._before = 0  # updates of the newest checkpoint when it was started
        self._last_fault: _Suffered | None = None

    def start(self, *options: str, change: Change | None = None) -> Attempt:
        self._look_where_it_began()
        self._before, self._last_fault = self.run.newest(), self._faults[-1] if self._faults else None
        self._attempt = self.run.start(*options, change=change)
        return self._attempt

    def suffered(self, kind: str, *failures: str) -> None:
        """A fault, and what was not as it should be at once."""
        self._faults.append(_Suffered(kind, [*failures]))

    def pending(self) -> int:
        """Faults of the run under way."""
        return len(self._faults)

    def ended(self, attempt: Attempt) -> None:
        """The run has come to its end by itself: all its faults are booked, and the next run begins."""
        self._attempt, status = attempt, attempt.status()
        self._look_where_it_began()
        if status != 0:
            wrong, said = False, [f"the run ended with {status}: {attempt.text()[-500:]}"]
        else:
            wrong, said = not self.run.has_weights_of(self.expected), []
        for fault in self._faults:
            self.trials.book(fault.kind, *fault.failures, *said, lost=fault.lost, wrong=wrong)
        assert self._faults or not (wrong or said), said or "wrong weights without a fault"
        self._begin()

    def end(self) -> None:
        """The run under way, to its end."""
        if self._faults:
            self.ended(self.start())

    def _look_where_it_began(self) -> None:
        """Of the start before; it may have been killed before that was known."""
        if self._attempt is not None and self._last_fault is not None and "batches: " in self._attempt.text():
            self._last_fault.lost += max(0, self._before - self._attempt.resumed_from())
        self._attempt = None
