# SPDX-License-Identifier: Apache-2.0
"""Injects faults of every kind into real runs, and counts what is lost: `python -m tests.system.fault_trials`.

    python -m tests.system.fault_trials                            # a few of each kind
    python -m tests.system.fault_trials --kills 100 --damages 40   # these alone

Every run trains a tiny model by the installed command. After faults at random moments and the same command again, it
must end with the weights of an undisturbed run, bit for bit.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.system import number_faults, process_faults, storage_faults
from tests.system.trial_runs import Chain, NotRun, Trials


@dataclass(frozen=True)
class Kind:
    """A kind of trial.

    Args:
        make: one trial, or none if the run was faster; of a `Chain` if `options` are given, of `Trials` if not.
        count: how many, if nothing is said.
        options: of the chain's runs.
    """

    what: str
    count: int
    make: Callable
    options: tuple[str, ...] | None = None


KEPT = ("training.keep_checkpoints=2", "training.average_checkpoints=1")
KINDS = {
    "kills": Kind("kill -9, a quarter while a checkpoint is written", 8, process_faults.kill, ()),
    "ranks": Kind("kill -9 of one of two processes over gloo", 3, process_faults.kill_one_of_two),
    "signals": Kind("SIGTERM or SIGINT", 4, process_faults.ask_to_stop, ()),
    "seconds": Kind("a second run in the folder of the first", 4, process_faults.start_a_second, ()),
    "subprocesses": Kind("kill -9 of a process that trains for another", 2, process_faults.kill_subprocess, ()),
    "fine-tunings": Kind("kill -9 of a fine-tuning", 2, process_faults.kill_fine_tuning),
    "damages": Kind("a file of the newest checkpoint cut, or a bit turned", 10, storage_faults.damage, ()),
    "tokenizers": Kind("the run's tokenizer cut, or a bit turned", 4, storage_faults.damage_tokenizer, ()),
    "kept": Kind("the newest of two kept checkpoints damaged", 4, storage_faults.damage_the_newer, KEPT),
    "changes": Kind("a data file changed since the checkpoint", 4, storage_faults.change_data, ()),
    "disks": Kind("a full disk (a small tmpfs)", 4, storage_faults.fill_disk),
    "read-only": Kind("a folder that cannot be written", 4, storage_faults.forbid_writing, ()),
    "not-finite": Kind("a few updates without finite loss or gradient", 4, number_faults.not_finite),
    "never-finite": Kind("the loss or gradient is no longer finite", 4, number_faults.never_finite, ()),
    "memory": Kind("no memory for large batches", 4, number_faults.no_memory),
    "clocks": Kind("a clock that jumps by hours", 4, number_faults.jump_in_time, ()),
}


def run_trials(folder: Path, counts: Mapping[str, int], seed: int, show: Callable[[str], object] = print) -> Trials:
    """Inject `counts` faults of each kind, and bring every run to its end."""
    trials = Trials(folder, seed)
    for name, count in counts.items():
        kind, before = KINDS[name], trials.total().trials
        show(f"{count} x {kind.what} ...")
        chain = None if kind.options is None else Chain(trials, *kind.options)
        try:
            while trials.total().trials - before + (chain.pending() if chain else 0) < count:
                kind.make(chain or trials)
        except NotRun as reason:
            trials.not_run[kind.what] = str(reason)
        if chain is not None:
            chain.end()
    return trials


def print_table(trials: Trials) -> None:
    print(f"{'trial':56s}  trials  survived  updates lost  wrong weights")
    rows = [*trials.rows.items(), ("in all", trials.total())]
    for kind, row in rows:
        print(f"{kind:56s}  {row.trials:6d}  {row.survived:8d}  {row.lost:12d}  {row.wrong:13d}")
    for what, reason in trials.not_run.items():
        print(f"{what:56s}  not run: {reason}")
    for kind, row in trials.rows.items():
        for note in row.notes:
            print(f"{kind}: {note}")


def main() -> int:
    parser = argparse.ArgumentParser(description="Faults at random moments of runs, counted.")
    for name, kind in KINDS.items():
        parser.add_argument(f"--{name}", type=int, metavar="N", help=f"{kind.what} (by default {kind.count})")
    parser.add_argument("--seed", type=int, default=1)
    arguments = vars(parser.parse_args())
    given = {name: arguments[name.replace("-", "_")] for name in KINDS}
    counts = {name: count for name, count in given.items() if count is not None}
    with tempfile.TemporaryDirectory() as folder:
        trials = run_trials(
            Path(folder),
            counts or {name: kind.count for name, kind in KINDS.items()},
            arguments["seed"],
            show=lambda text: print(text, file=sys.stderr, flush=True),
        )
        print_table(trials)
    return int(trials.total().survived != trials.total().trials)


if __name__ == "__main__":
    sys.exit(main())
