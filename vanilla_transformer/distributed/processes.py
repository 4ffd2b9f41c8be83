# SPDX-License-Identifier: Apache-2.0
"""The processes among which work is shared, as Accelerate sees them."""

import atexit
from datetime import timedelta

import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env

# Until all have come, which is a matter of imports; as torchrun's own. Of one that was killed before, nobody hears.
LONGEST_TO_MEET = timedelta(minutes=10)
# Afterwards the others wait while the main process reads, tokenises or averages; the default is 10 minutes on GPUs.
LONGEST_WAIT = timedelta(hours=12)


def process_state() -> PartialState:
    """This process's place among those that `accelerate launch` or `torchrun` started; alone, the only one.

    The first call in a process decides where it computes, so every call comes through here. `PartialState()` itself
    would not let several processes meet on a machine without an accelerator.

    Raises:
        RuntimeError: some of the processes have not come.
    """
    on_cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    had_met = dist.is_initialized()
    try:
        state = PartialState(cpu=on_cpu, timeout=LONGEST_TO_MEET)
    except dist.DistError as error:
        minutes = LONGEST_TO_MEET.total_seconds() / 60
        raise RuntimeError(
            f"the processes have not all come together within {minutes:g} minutes: has one ended, or is MASTER_ADDR or "
            f"MASTER_PORT wrong? ({' '.join(str(error).split())})"
        ) from error
    if dist.is_initialized() and not had_met:
        # The store's too: on GPUs the first thing that a process waits for, in a barrier, is a name from the main one.
        dist.distributed_c10d._get_default_store().set_timeout(LONGEST_WAIT)
        dist.distributed_c10d._set_pg_timeout(LONGEST_WAIT)
        atexit.register(_part)
    return state


def _part() -> None:
    """Without it a process may abort at its end, after its work is done: gloo's threads are still running."""
    if dist.is_initialized():
        dist.destroy_process_group()
