# SPDX-License-Identifier: Apache-2.0
"""The processes among which work is shared, as Accelerate sees them."""

import atexit
from datetime import timedelta

import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env

# The others wait while the main process reads, tokenises or averages; the default is 10 minutes on GPUs.
LONGEST_WAIT = timedelta(hours=12)


def process_state() -> PartialState:
    """This process's place among those that `accelerate launch` or `torchrun` started; alone, the only one.

    The first call in a process decides where it computes, so every call comes through here. `PartialState()` itself
    would not let several processes meet on a machine without an accelerator.
    """
    on_cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    had_met = dist.is_initialized()
    state = PartialState(cpu=on_cpu, timeout=LONGEST_WAIT)
    if dist.is_initialized() and not had_met:
        atexit.register(_part)
    return state


def _part() -> None:
    """Without it a process may abort at its end, after its work is done: gloo's threads are still running."""
    if dist.is_initialized():
        dist.destroy_process_group()
