# SPDX-License-Identifier: Apache-2.0
"""The process group, as Accelerate sees it."""

import atexit
from datetime import timedelta

import torch
import torch.distributed as dist
from accelerate import Accelerator, PartialState
from accelerate.utils import parse_flag_from_env

# Until all processes have started and imported; torchrun has the same. Nobody reports a process that was killed before.
RENDEZVOUS_TIMEOUT = timedelta(minutes=10)
# Afterwards the others wait while the main process reads, tokenises or averages; torch's default is 10 minutes on GPUs.
COLLECTIVE_TIMEOUT = timedelta(hours=12)


def process_state() -> PartialState:
    """This process's place among those that `accelerate launch` or `torchrun` started.

    The first call in a process decides where it computes, so every call comes through here. `PartialState()` itself
    would not let several processes meet on a machine without an accelerator.

    Raises:
        RuntimeError: some of the processes have not come.
    """
    on_cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    was_initialized = dist.is_initialized()
    try:
        state = PartialState(cpu=on_cpu, timeout=RENDEZVOUS_TIMEOUT)
    except dist.DistError as error:
        minutes = RENDEZVOUS_TIMEOUT.total_seconds() / 60
        raise RuntimeError(
            f"the processes have not all come together within {minutes:g} minutes: has one ended, or is MASTER_ADDR or "
            f"MASTER_PORT wrong? ({' '.join(str(error).split())})"
        ) from error
    if dist.is_initialized() and not was_initialized:
        # The store's timeout too: on GPUs a barrier first waits there for the main process to publish an id.
        dist.distributed_c10d._get_default_store().set_timeout(COLLECTIVE_TIMEOUT)
        dist.distributed_c10d._set_pg_timeout(COLLECTIVE_TIMEOUT)
        atexit.register(_destroy_process_group)
    return state


def _destroy_process_group() -> None:
    """Without it a process may abort at its end, after its work is done: gloo's threads are still running."""
    if dist.is_initialized():
        dist.destroy_process_group()


def sum_over_processes(accelerator: Accelerator, tensor: torch.Tensor) -> torch.Tensor:
    """The sum of every process's tensor, on this process's device."""
    total = accelerator.reduce(tensor.to(accelerator.device), reduction="sum")
    assert isinstance(total, torch.Tensor)
    return total
