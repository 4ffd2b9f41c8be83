# SPDX-License-Identifier: Apache-2.0
"""Faults at random moments of a real run, and whether anything is lost: `python -m tests.system.fault_trials`.

    python -m tests.system.fault_trials --kills 100 --damages 40 --seed 1

Every run trains a tiny model in a process of its own. One that nothing happens to gives the weights that all others
must end with, bit for bit.
"""

import argparse
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from safetensors.torch import load_file

from tests.conftest import TinyRun

CHECKPOINT_EVERY = 3
OPTIONS = ("training.max_updates=45", f"training.checkpoint_every={CHECKPOINT_EVERY}", "training.average_checkpoints=5")
PATIENCE = 120  # seconds for a run, after which it is taken to hang
PRELOADED = ["tests.conftest", "vanilla_transformer.training.loop"]  # imported once, by the server that forks


class Trials:
    """A folder for runs, and what has happened in them."""

    def __init__(self, folder: Path, seed: int, *options: str):
        self.folder, self.random = folder, random.Random(seed)
        self.run = TinyRun(folder)
        self.options = [*OPTIONS, *options]
        self.counts: Counter[str] = Counter()
        self.processes = multiprocessing.get_context("forkserver")
        self.processes.set_forkserver_preload(PRELOADED)
        self._finish()  # which also pays for the imports
        self._start_anew()
        self.seconds = self._finish()  # of an undisturbed run
        self.expected = self._weights()
        assert self.expected is not None, f"even an undisturbed run failed: {(folder / 'said').read_text()[-2000:]}"
        self._start_anew()

    def kill(self, while_writing: bool) -> None:
        """One run is killed, at any moment or while a checkpoint is being written; it goes on in the next trial."""
        process = self._start()
        if while_writing:
            is_writing = self._wait_for_writing(process)
        else:
            process.join(self.random.uniform(0.0, self.seconds))
            is_writing = any(self._checkpoints.glob(".unfinished-*"))
        if process.exitcode is not None:  # it was faster
            self._ended(process.exitcode)
            return
        before = self._newest()
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
        self.counts["kills"] += 1
        self.counts["kills while a checkpoint was written"] += is_writing
        self.counts["updates lost beyond the last checkpoint"] += max(0, before - self._newest())

    def damage(self) -> None:
        """A file of the newest checkpoint is cut or one of its bits turned, and the run goes on from the one before."""
        process = self._start()
        process.join(self.random.uniform(self.seconds / 2, self.seconds))
        if process.exitcode is not None:
            self._ended(process.exitcode)
            return
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
        whole = sorted(self._checkpoints.glob("update-*"))
        if len(whole) < 2:
            return
        file = self.random.choice(sorted(path for path in whole[-1].rglob("*") if path.is_file()))
        content = bytearray(file.read_bytes())
        if self.random.random() < 0.5:
            del content[self.random.randrange(len(content)) :]
            self.counts["files cut"] += 1
        else:
            content[self.random.randrange(len(content))] ^= 1 << self.random.randrange(8)
            self.counts["bits turned"] += 1
        file.write_bytes(content)

    def end(self) -> None:
        """The run under way, if there is one, to its end."""
        if self._checkpoints.exists():
            self._finish()
            self._compare()

    def _start(self) -> multiprocessing.process.BaseProcess:
        process = self.processes.Process(target=_train, args=(self.folder, self.options))
        process.start()
        return process

    def _finish(self) -> float:
        start, process = time.perf_counter(), self._start()
        process.join(PATIENCE)
        if process.exitcode is None:
            os.kill(process.pid or 0, signal.SIGKILL)
            self.counts["runs that hung"] += 1
        elif process.exitcode != 0:
            self.counts["runs that failed"] += 1
        return time.perf_counter() - start

    def _ended(self, status: int) -> None:
        if status == 0:
            self._compare()
        else:
            self.counts["runs that failed"] += 1
            self._start_anew()

    def _compare(self) -> None:
        self.counts["runs to the end"] += 1
        found = self._weights()
        same = found is not None and all(found[name].equal(one) for name, one in self.expected.items())
        self.counts["runs that ended with wrong weights"] += not same
        self._start_anew()

    def _wait_for_writing(self, process) -> bool:
        deadline = time.perf_counter() + self.random.uniform(0, self.seconds / 2)  # not always the first one
        while process.exitcode is None:
            if time.perf_counter() > deadline and any(self._checkpoints.glob(".unfinished-*")):
                return True
        return False

    def _newest(self) -> int:
        """Updates of the newest checkpoint."""
        found = sorted(self._checkpoints.glob("update-*"))
        return int(found[-1].name.removeprefix("update-")) if found else 0

    def _weights(self):
        file = self.run.output_dir / "model" / "model.safetensors"
        return load_file(file) if file.exists() else None

    def _start_anew(self) -> None:
        shutil.rmtree(self.run.output_dir, ignore_errors=True)

    @property
    def _checkpoints(self) -> Path:
        return self.run.output_dir / "checkpoints"


def _train(folder: Path, options: list[str]) -> None:
    sys.stdout = sys.stderr = open(folder / "said", "a")  # noqa: SIM115 -- as long as the process lives
    TinyRun(folder).train(*options)


def main() -> int:
    parser = argparse.ArgumentParser(description="Faults at random moments of a run, counted.")
    parser.add_argument("--kills", type=int, default=100, help="kill -9, a quarter while a checkpoint is written")
    parser.add_argument("--damages", type=int, default=40, help="files of the newest checkpoint cut, or a bit turned")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        trials = run_trials(Path(folder), arguments.kills, arguments.damages, arguments.seed)
    for what, count in trials.counts.items():
        print(f"{count:6d} {what}")
    return int(any(trials.counts[what] for what in LOSSES))


LOSSES = (
    "updates lost beyond the last checkpoint",
    "runs that ended with wrong weights",
    "runs that failed",
    "runs that hung",
)


def run_trials(folder: Path, kills: int, damages: int, seed: int) -> Trials:
    """So many faults, and the last run to its end."""
    trials = Trials(folder, seed)
    while trials.counts["kills"] < kills:
        trials.kill(while_writing=trials.counts["kills"] % 4 == 0)
    while trials.counts["files cut"] + trials.counts["bits turned"] < damages:
        trials.damage()
    trials.end()
    return trials


if __name__ == "__main__":
    sys.exit(main())
