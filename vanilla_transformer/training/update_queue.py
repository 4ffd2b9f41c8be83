# SPDX-License-Identifier: Apache-2.0
"""Updates on their way: the device decides which of them are skipped, and the host reads its answers an update late."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from accelerate.optimizer import AcceleratedOptimizer
from torch.optim.lr_scheduler import LambdaLR

from vanilla_transformer.distributed.deepspeed_zero import ZeroOptimizer
from vanilla_transformer.distributed.processes import sum_over_processes
from vanilla_transformer.training.batch import Batch, to_device
from vanilla_transformer.training.checkpoint import list_checkpoints
from vanilla_transformer.training.configuration import RunConfig
from vanilla_transformer.training.gradients import Losses
from vanilla_transformer.training.reporting import ProgressReport
from vanilla_transformer.training.setup import Run
from vanilla_transformer.training.train_state import Progress, TrainState

MAX_SHARE = 0.03  # validation and checkpoints by minutes take at most this fraction of the time
EXACT = 2**20  # numbers below are exact in float32, the one type of all results: MPS has no float64


class Answers(NamedTuple):
    """The steps due after an update. One process suffices: clocks and signals differ, but all must act alike."""

    end: bool = False
    validation: bool = False
    checkpoint: bool = False


class Interval:
    """When something that interrupts the updates comes round: by their number, and by minutes of training.

    Args:
        every: in updates; `None`: not by updates.
        minutes: since the last time; it waits longer if it would take more than `MAX_SHARE` of the time.
    """

    def __init__(self, progress: Progress, every: int | None, minutes: float | None):
        self.progress = progress
        self.every = every
        self.seconds = math.inf if minutes is None else minutes * 60
        self.last, self.cost = progress.seconds, 0.0

    def is_at(self, updates: int) -> bool:
        return self.every is not None and updates % self.every == 0

    def is_due(self, seconds: float) -> bool:
        """Whether it is due by the clock, after so many seconds of training in this process."""
        return seconds - self.last >= max(self.seconds, self.cost / MAX_SHARE)

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Do it now, in the block."""
        start = time.perf_counter()
        yield
        self.last, self.cost = self.progress.seconds, time.perf_counter() - start


class _Queued:
    """An update that the device may still be computing.

    Args:
        skipped: scalar on the device: 1 if the update changes nothing, because its loss or gradient is not finite.
        results: on the device: whether it is skipped, loss, nll, answers, sizes and seconds of each process, target
            tokens as two numbers, gradient norm.
        own_tokens: this process's tokens of both sides.
    """

    def __init__(self, skipped: torch.Tensor, results: torch.Tensor, own_tokens: int):
        self.skipped = skipped
        self.results = results
        self.own_tokens = own_tokens
        self.ready = None
        if results.device.type == "cuda":
            # Copied behind this update's kernels: a copy at the time of reading would wait for the next update's, too.
            self.results = results.to("cpu", non_blocking=True)
            self.ready = torch.cuda.Event()
            self.ready.record()

    def read(self) -> list[float]:
        """Wait until the device has come to the update's end."""
        if self.ready is not None:
            self.ready.synchronize()
        return self.results.tolist()


class UpdateQueue:
    """The loop's updates; of at most one, the host does not know yet whether it was skipped.

    `progress`, schedule and report count an update when it is settled, that is, when its results are read.
    """

    def __init__(self, run: Run, report: ProgressReport):
        self.run = run
        self.report = report
        self.state = run.state
        self.pending: list[_Queued] = []
        self.skipped_in_a_row = 0
        self.max_positions: float = run.state.progress.max_positions or math.inf  # agreed
        self.start_clock()

    def start_clock(self) -> None:
        """Go on counting the run's seconds."""
        self.counted_until = time.perf_counter()

    def seconds(self) -> float:
        """The run's seconds in updates, counted until now."""
        return self.state.progress.seconds + time.perf_counter() - self.counted_until

    def add(self, losses: Losses, norm: torch.Tensor, answers: Answers, micro_batches: list[Batch]) -> None:
        """Apply the gradients, unless they or the loss of any process are not finite; waits for no device.

        Args:
            answers: this process's.
            micro_batches: this process's.
        """
        accelerator = self.state.accelerator
        is_bad = ~(torch.isfinite(losses.loss) & torch.isfinite(norm))
        local = torch.stack([value.float() for value in (is_bad, losses.loss, losses.nll)])
        columns = torch.zeros(3, accelerator.num_processes)  # each process fills its own: their sum has all
        positions = max(batch.positions() for batch in micro_batches)
        largest = self.state.progress.max_positions or math.inf
        columns[:, accelerator.process_index] = torch.tensor([largest, min(largest, positions), self.seconds()])
        known = torch.cat([torch.tensor(answers, dtype=torch.float32), columns.flatten()])
        sums = torch.cat([local, to_device(known, norm.device)])
        if accelerator.num_processes > 1:
            sums = sum_over_processes(accelerator, sums)  # the update's only one, besides that of its tokens
        skipped = (sums[0] > 0).float()
        step(self.state, skipped, self.pending[-1].skipped if self.pending else None)
        facts = (losses.tokens // EXACT, losses.tokens % EXACT, norm)
        results = torch.cat([sums, torch.stack([value.float() for value in facts])])
        own_tokens = sum(batch.source_tokens + batch.target_tokens for batch in micro_batches)
        self.pending.append(_Queued(skipped, results, own_tokens))

    def settle(self, keep: int = 0) -> Answers:
        """Wait for all updates but the last `keep`, and count them.

        Returns:
            The answers that are due after any of them; then the others are settled, too.

        Raises:
            ValueError: too many were skipped in a row.
        """
        due, progress = Answers(), self.state.progress
        while True:
            if len(self.pending) == 1:  # the same whether or not the last update is settled before the next begins
                progress.proven_positions = progress.newest_positions
            if len(self.pending) <= (0 if any(due) else keep):
                return due
            answers = self._count(self.pending.pop(0))
            due = Answers(*(before or now for before, now in zip(due, answers, strict=True)))

    def _count(self, update: _Queued) -> Answers:
        progress = self.state.progress
        skipped, loss, nll, *known, multiples, remainder, norm = update.read()
        answers = Answers(*(answer > 0 for answer in known[: len(Answers._fields)]))
        fitting, proven, seconds = torch.tensor(known[len(answers) :]).view(3, -1).tolist()
        self._agree_on_sizes(fitting, proven)
        progress.agreed_seconds = max(seconds)
        progress.seconds = self.seconds()
        self.start_clock()
        if skipped:
            self.skipped_in_a_row += 1
            progress.skipped_updates += 1
            self.report.show_skipped(self.skipped_in_a_row, norm)
            check_skipped(self.run, self.skipped_in_a_row)
        else:
            self.skipped_in_a_row = 0
            self.state.schedule.step()
            progress.updates += 1
            tokens = round(multiples) * EXACT + round(remainder)
            progress.target_tokens += tokens
            self.report.add(loss, nll, tokens, update.own_tokens)
        return answers

    def _agree_on_sizes(self, fitting: list[float], proven: list[float]) -> None:
        """Take the smallest size that fits in every process, and say it when it changes."""
        progress, smallest = self.state.progress, min(fitting)
        progress.newest_positions = max(progress.newest_positions, round(max(proven)))
        if smallest < self.max_positions:
            self.max_positions = smallest
            progress.max_positions = min(progress.max_positions or round(smallest), round(smallest))
            self.report.write(
                f"after update {progress.updates}: a batch did not fit in memory; from now on those of more than "
                f"{round(smallest):,} source and target positions, padding included, are halved"
            )


def check_skipped(run: Run, in_a_row: int) -> None:
    """Raise ValueError if this many updates in a row, since the start or resumption, were too many to skip."""
    if in_a_row < run.config.training.max_skipped_in_a_row:
        return
    run.checkpoints.wait()
    checkpoints = list_checkpoints(run.checkpoints.folder)
    last = f"the last good checkpoint is {checkpoints[-1]}" if checkpoints else "there is no checkpoint yet"
    rate = "learning_rate_scale" if isinstance(run.config, RunConfig) else "learning_rate"
    raise ValueError(
        f"{in_a_row} updates in a row were skipped after update {run.state.progress.updates}, because their loss or "
        f"gradient was not finite; nothing was written since, and {last}. Try a lower optimizer.{rate}, "
        "optimizer.max_grad_norm=1.0 or training.mixed_precision=no, in another training.output_dir"
    )


def decides_on_device(state: TrainState) -> bool:
    """Whether the optimizer skips updates by itself: MPS's fused Adam does not, and DeepSpeed waits in any case."""
    return state.accelerator.device.type != "mps" and not isinstance(state.optimizer, ZeroOptimizer)


def step(state: TrainState, skipped: torch.Tensor, previous_skipped: torch.Tensor | None) -> None:
    """Step the optimizer once, and drop the gradients. If skipped, weights and moments stay as they are.

    Args:
        skipped: scalar on the device, 0 or 1.
        previous_skipped: that of the update before, which decides on the learning rate, if it is not settled yet.
    """
    scaler = state.accelerator.scaler
    if not decides_on_device(state):
        assert previous_skipped is None
        if not skipped:
            state.optimizer.step()
        elif scaler is not None:
            scaler.update()  # fp16: a smaller factor for the next update
        state.optimizer.zero_grad()
        return
    optimizer: Any = state.optimizer
    if isinstance(optimizer, AcceleratedOptimizer):
        optimizer = optimizer.optimizer
    schedule = state.schedule
    assert isinstance(schedule, LambdaLR)
    rates = schedule.get_last_lr()
    following = [
        base * rate(schedule.last_epoch + 1) for base, rate in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)
    ]
    for group, rate, next_rate in zip(optimizer.param_groups, rates, following, strict=True):
        group["lr"] = _scalar(rate, skipped.device)
        if previous_skipped is not None:
            group["lr"] = torch.where(previous_skipped > 0, group["lr"], _scalar(next_rate, skipped.device))
    optimizer.found_inf = skipped  # as a GradScaler tells a fused Adam
    optimizer.step()
    del optimizer.found_inf
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    state.optimizer.zero_grad()
    if scaler is not None:
        scaler.update()  # fp16: by what it found when it unscaled the gradients


def _scalar(value: Any, device: torch.device) -> torch.Tensor:
    """In the precision that the fused Adam reads; a kernel writes it, so that nothing waits for a copy."""
    return torch.full((), value, dtype=torch.float64 if device.type == "cpu" else torch.float32, device=device)
