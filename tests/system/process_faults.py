# SPDX-License-Identifier: Apache-2.0
"""Faults of processes: killed, asked to stop, in each other's way."""

import json
import os
import platform
import signal
from contextlib import suppress
from functools import partial
from pathlib import Path

import yaml

from tests.system.trial_runs import MAX_UPDATES, Attempt, Chain, TrialRun, Trials
from vanilla_transformer.cli import train
from vanilla_transformer.training.configuration import RunConfig
from vanilla_transformer.training.subprocess_run import run_in_subprocess


def kill(chain: Chain) -> None:
    """At any moment, and every fourth time while a checkpoint is being written."""
    trials, attempt = chain.trials, chain.start()
    if trials.random.random() < 0.25:
        kind = "kill -9 while a checkpoint is written"
        is_going = attempt.goes_on_for(trials.moment(0.5))  # not always the first one
        is_in_time = is_going and attempt.goes_on_until(chain.run.is_writing)
    else:
        kind = "kill -9 at any moment"
        is_in_time = attempt.goes_on_for(trials.moment())
    if not is_in_time:
        chain.ended(attempt)
        return
    attempt.stop()
    attempt.status()
    chain.suffered(kind)


def kill_one_of_two(trials: Trials) -> None:
    """The other must end by itself, and the same command go on with both."""
    run, expected = trials.new_run(), trials.undisturbed(processes=2)
    attempts = run.start_two()
    begun = trials.random.randrange(0, MAX_UPDATES)
    attempts[0].goes_on_until(lambda: run.newest() >= begun)
    attempts[0].goes_on_for(trials.moment(0.2))
    victim = trials.random.randrange(2)
    if not attempts[victim].is_going():
        return
    attempts[victim].stop()
    statuses = [attempt.status() for attempt in attempts]
    if statuses[1 - victim] == 0:  # it had done its part
        return
    failures = []
    if statuses[1 - victim] is None:
        failures.append("the other process hung")
    elif not attempts[1 - victim].error():
        failures.append(f"the other ended with {statuses[1 - victim]}: {attempts[1 - victim].text()[-500:]}")
    before, attempts = run.newest(), run.start_two()
    statuses = [attempt.status() for attempt in attempts]
    if statuses != [0, 0]:
        failures.append(f"the next start ended with {statuses}: {attempts[0].text()[-500:]}")
    trials.book(
        "kill -9 of one of two processes",
        *failures,
        lost=max(0, before - attempts[0].resumed_from()),
        wrong=statuses == [0, 0] and not run.has_weights_of(expected),
    )


def ask_to_stop(chain: Chain) -> None:
    """SIGTERM or SIGINT while it trains: one checkpoint, which is the newest, and status 3."""
    trials, attempt, begun = chain.trials, chain.start(), chain.run.newest()
    number = trials.random.choice([signal.SIGTERM, signal.SIGINT])
    if not attempt.goes_on_until(lambda: chain.run.newest() > begun) or not attempt.goes_on_for(trials.moment(0.2)):
        chain.ended(attempt)
        return
    attempt.stop(number)
    status = attempt.status()
    if status == 0:
        chain.ended(attempt)
    elif status in (-number, 130) and chain.run.newest() == MAX_UPDATES:
        chain.suffered(f"{number.name} after the last update")
    else:
        failures = [] if status == 3 else [f"{number.name} ended it with {status}: {attempt.text()[-500:]}"]
        if f"stopped after {chain.run.newest()} updates, checkpoint written" not in attempt.text():
            failures.append(f"{number.name}: the newest checkpoint is of update {chain.run.newest()}")
        chain.suffered(number.name, *failures)


def start_a_second(chain: Chain) -> None:
    """While one goes on, or at the same moment; the one that is refused names the other, which comes to its end."""
    first = chain.start()
    if chain.trials.random.random() < 0.5 and not first.goes_on_until(lambda: _holder(chain.run) == first.pid):
        chain.ended(first)
        return
    second = chain.run.start()
    first.goes_on_until(lambda: not second.is_going())
    refused, other = (second, first) if first.is_going() or first.status() == 0 else (first, second)
    words = f"in use by the run of process {other.pid} on {platform.node()}"
    chain.suffered("a second run in the folder", *unless(refused, 1, words))
    chain.ended(other)


def kill_subprocess(chain: Chain) -> None:
    """The subprocess in which `quickstart` and `compare` train; the one that waits for it must not wait for ever."""
    before, attempt = _holder(chain.run), chain.start(change=_train_in_subprocess)
    attempt.goes_on_until(lambda: _holder(chain.run) not in (before, None))
    if not attempt.goes_on_for(chain.trials.moment()):
        chain.ended(attempt)
        return
    _kill(_holder(chain.run))
    if attempt.status() == 0:
        chain.ended(attempt)
    else:
        words = "the training process ended with status -9 and without a word"
        chain.suffered("kill -9 of a process that trains for another", *unless(attempt, 1, words))


def kill_fine_tuning(trials: Trials) -> None:
    """At any moment; the same command goes on."""
    expected, run = _fine_tuning_that_nothing_happens_to(trials), trials.new_run()
    line = ["finetune", str(_write_fine_tuning(run, trials.undisturbed()))]
    attempt = run.start(arguments=line)
    if not attempt.goes_on_for(trials.moment()):
        return
    attempt.stop()
    attempt.status()
    before, again = run.newest(), run.start(arguments=line)
    failures = []
    if again.status() != 0:
        failures.append(f"the next start ended with {again.status()}: {again.text()[-500:]}")
    trials.book(
        "kill -9 of fine-tuning",
        *failures,
        lost=max(0, before - again.resumed_from()),
        wrong=not failures and not run.has_weights_of(expected),
    )


def _fine_tuning_that_nothing_happens_to(trials: Trials) -> TrialRun:
    run = TrialRun(trials.folder / "fine-tuning")
    if not run.weights():
        line = ["finetune", str(_write_fine_tuning(run, trials.undisturbed()))]
        assert run.start(arguments=line).status() == 0
    return run


def _write_fine_tuning(run: TrialRun, base: TrialRun) -> Path:
    data = yaml.safe_load(run.tiny.config.read_text(encoding="utf-8"))["data"]
    training = {"output_dir": str(run.output_dir), "max_updates": 30, "checkpoint_every": 4}
    values = {
        "model": str(base.output_dir / "model"),
        "data": {"train": data["train"]},
        "training": training | {"max_source_tokens": 100, "max_target_tokens": 100},
    }
    path = run.folder / "finetune.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def unless(attempt: Attempt, status: int, words: str) -> list[str]:
    """What is to be said if it has not ended with that status and one error that has these words."""
    if attempt.status() == status and words in attempt.error():
        return []
    return [f"it ended with {attempt.status()}, not with {words!r}: {attempt.text()[-500:]}"]


def _holder(run: TrialRun) -> int | None:
    """The process that has locked the folder, or had."""
    try:
        return json.loads((run.output_dir / ".lock").read_text(encoding="utf-8"))["pid"]
    except (FileNotFoundError, json.JSONDecodeError):
        return None


def _kill(pid: int | None) -> None:
    with suppress(ProcessLookupError):  # it was faster
        if pid is not None:
            os.kill(pid, signal.SIGKILL)


def _train_in_subprocess() -> None:
    """`vanilla-transformer train`, in the way of `quickstart`."""
    train.train_and_describe = partial(run_in_subprocess, train_and_describe_there)


def train_and_describe_there(config: RunConfig) -> None:
    train.train_and_describe(config)
