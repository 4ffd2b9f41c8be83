# SPDX-License-Identifier: Apache-2.0
"""Faults of numbers, memory and time, made in the process that trains."""

import os
import random
import time
from collections.abc import Iterator
from functools import partial

import torch

from tests.system.process_faults import unless
from tests.system.trial_runs import MAX_UPDATES, Chain, Trials
from vanilla_transformer.training import loop
from vanilla_transformer.training.batch import Batch
from vanilla_transformer.training.setup import Run
from vanilla_transformer.training.train_state import TrainState

HOUR = 3600
MOST_IN_A_ROW = 5


def not_finite(trials: Trials) -> None:
    """A few updates, each skipped: the run is as one that only looks at their batches."""
    positions = frozenset(trials.random.sample(range(MAX_UPDATES), trials.random.randint(1, 4)))
    kind = trials.random.choice(["loss NaN", "loss infinite", "gradient infinite"])
    run, expected = trials.new_run(), trials.undisturbed(change=partial(_only_look_at, positions))
    attempt = run.start(change=partial(_spoil_updates, positions, kind))
    failures = [] if attempt.status() == 0 else [f"it ended with {attempt.status()}: {attempt.text()[-500:]}"]
    if not failures and run.progress()["skipped_updates"] != len(positions):
        failures.append(f"{len(positions)} to skip, counted {run.progress()['skipped_updates']}")
    trials.book(f"{kind}: updates skipped", *failures, wrong=not failures and not run.has_weights_of(expected))


def never_finite(chain: Chain) -> None:
    """From some update on: the run ends by itself, with the last good checkpoint, and goes on from there."""
    start = chain.trials.random.randrange(MAX_UPDATES)
    positions = frozenset(range(start, 10 * MAX_UPDATES))
    kind = chain.trials.random.choice(["loss NaN", "loss infinite", "gradient infinite"])
    attempt = chain.start(
        f"training.max_skipped_in_a_row={MOST_IN_A_ROW}", change=partial(_spoil_updates, positions, kind)
    )
    if attempt.status() == 0:  # fewer updates were left
        chain.ended(attempt)
        return
    found = chain.run.checkpoints()
    words = f"the last good checkpoint is {found[-1]}" if found else "there is no checkpoint yet"
    failures = unless(attempt, 1, words)
    failures += unless(attempt, 1, f"{MOST_IN_A_ROW} updates in a row were skipped")
    chain.suffered("the loss is no longer finite: the run ends", *failures)


def no_memory(trials: Trials) -> None:
    """For batches of more than some pairs, in either pass: the run is as one whose batches come in such parts."""
    most, place = trials.random.choice([5, 8, 12]), trials.random.choice(["forward", "backward"])
    whole = trials.undisturbed("model.dropout=0.0")
    parts = trials.undisturbed("model.dropout=0.0", change=partial(_in_parts, most))
    run = trials.new_run("model.dropout=0.0")
    attempt = run.start(change=partial(_limit_memory, most, place))
    failures = [] if attempt.status() == 0 else [f"it ended with {attempt.status()}: {attempt.text()[-500:]}"]
    if not failures:
        found, expected = run.progress(), whole.progress()
        if found["halved_batches"] == 0:
            failures.append("no batch was halved")
        counts = ("target_tokens", "updates", "epoch", "batches")
        failures += [f"{found[n]} {n}, and not {expected[n]}" for n in counts if found[n] != expected[n]]
    trials.book(f"out of memory, {place} pass", *failures, wrong=not failures and not run.has_weights_of(parts))


def jump_in_time(chain: Chain) -> None:
    """The clock by hours, forward and backward, and the dates of all files; the run's minutes are not over."""
    trials = chain.trials
    attempt = chain.start("training.max_minutes=60", change=partial(_jumping_clock, trials.random.random()))
    if not attempt.goes_on_for(trials.moment()):
        chain.ended(attempt)
        return
    attempt.stop()
    attempt.status()
    for path in [*chain.run.output_dir.rglob("*")]:
        date = time.time() + trials.random.uniform(-10, 10) * HOUR
        os.utime(path, (date, date))
    chain.suffered("a clock that jumps")


def _spoil_updates(positions: frozenset[int], kind: str) -> None:
    step, count = loop.backward, iter(range(1_000_000))

    def backward(state: TrainState, *rest):
        losses = step(state, *rest)
        if next(count) in positions:
            if kind == "gradient infinite":
                gradient = state.bare_model().get_parameter("lm_head.weight").grad
                assert gradient is not None
                gradient[0, 0] = float("inf")
            else:
                losses = losses._replace(loss=losses.loss * float("nan" if kind == "loss NaN" else "inf"))
        return losses

    loop.backward = backward


def _only_look_at(positions: frozenset[int]) -> None:
    every = loop.updates

    def updates(run: Run) -> Iterator[list[Batch]]:
        for position, micro_batches in enumerate(every(run)):
            if position not in positions:
                yield micro_batches
                continue
            with torch.no_grad():  # which draws dropout's numbers
                for batch in micro_batches:
                    run.state.model(**batch)

    loop.updates = updates


def _in_parts(most: int) -> None:
    every = loop.updates

    def cut(batch: Batch) -> list[Batch]:
        if len(batch["labels"]) <= most:
            return [batch]
        return [part for half in batch.halves() for part in cut(half)]

    loop.updates = lambda run: ([part for batch in batches for part in cut(batch)] for batches in every(run))


def _limit_memory(most: int, place: str) -> None:
    prepare = loop.set_up

    def fail(*_):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes.")

    def limit(module, arguments, output):
        if len(output) > most and place == "forward":
            fail()
        if len(output) > most and torch.is_grad_enabled():
            output.register_hook(fail)  # the decoder's gradients are there by then, the encoder's are not

    def set_up(config):
        run = prepare(config)
        run.state.bare_model().get_input_embeddings().register_forward_hook(limit)
        return run

    loop.set_up = set_up


def _jumping_clock(seed: float) -> None:
    pick, clock, clock_ns = random.Random(seed), time.time, time.time_ns
    time.time = lambda: clock() + pick.uniform(-10, 10) * HOUR
    time.time_ns = lambda: clock_ns() + round(pick.uniform(-10, 10) * HOUR * 1e9)
