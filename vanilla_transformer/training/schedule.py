# SPDX-License-Identifier: Apache-2.0
"""Section 5.3 of the paper: the learning rate; and, as departures from it, rates that decay to 0 at the run's end."""

import math
from collections.abc import Callable

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def learning_rate(step: int, d_model: int, warmup_steps: int, scale: float = 1.0) -> float:
    """Equation 3: scale * d_model^-0.5 * min(step^-0.5, step * warmup_steps^-1.5); `step` counts updates from 1."""
    return scale * d_model**-0.5 * min(step**-0.5, step * warmup_steps**-1.5)


def paper_schedule(optimizer: Optimizer, d_model: int, warmup_steps: int, scale: float = 1.0) -> LambdaLR:
    """Equation 3 as torch's scheduler, stepped once per update.

    transformers' `inverse_sqrt` starts at rate 0, so its first update changes nothing; equation 3 starts at step 1.
    The optimizer must be made with lr=1.0: the schedule gives the rate itself.
    """
    return LambdaLR(optimizer, lambda done: learning_rate(done + 1, d_model, warmup_steps, scale))


def decaying_schedule(
    optimizer: Optimizer, kind: str, warmup_steps: int, run_length: Callable[[int], float], first_step: int
) -> LambdaLR:
    """Warm up to the optimizer's own rate, then decay to 0 at the run's end, as torch's scheduler.

    Args:
        kind: "linear" or "cosine", those of transformers.
        run_length: estimates, after so many updates, those of the whole run: a run's clock or configuration may tell.
        first_step: the number of the warm-up's first update. With 0, as in transformers, that update changes nothing.
    """

    def factor(done: int) -> float:
        if done < warmup_steps:
            return (done + first_step) / warmup_steps
        return decay(kind, done, warmup_steps, run_length(done))

    return LambdaLR(optimizer, factor)


def decay(kind: str, done: float, start: float, end: float) -> float:
    """The factor on the rate after `done` updates: 1 at `start`, 0 at `end` and from then on."""
    if done >= end:
        return 0.0
    if kind == "linear":
        return (end - done) / (end - start)
    assert kind == "cosine"
    return 0.5 * (1.0 + math.cos(math.pi * ((done - start) / (end - start))))


def follow_run_length(schedule: LambdaLR) -> tuple[float, float]:
    """Give the next update the rate that it has with the run's present end; the rate before, and now."""
    [before, *_], [base, *_], [factor, *_] = schedule.get_last_lr(), schedule.base_lrs, schedule.lr_lambdas
    now = base * factor(schedule.last_epoch)
    if now != before:
        schedule.last_epoch -= 1
        schedule.step()
    return float(before), float(now)
