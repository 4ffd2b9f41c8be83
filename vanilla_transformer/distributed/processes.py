# SPDX-License-Identifier: Apache-2.0
"""The process group, as Accelerate sees it."""

import atexit
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from itertools import count
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator, PartialState
from accelerate.utils import parse_flag_from_env
from torch.distributed.rendezvous import rendezvous

# Until all processes have started and imported (torchrun has the same), and of every collective afterwards: a process
# that is lost without a word holds the others for this long.
TIMEOUT = timedelta(minutes=10)
# In `wait_for_everyone`, while another process reads, tokenises, averages or writes.
LONG_TIMEOUT = timedelta(hours=12)

_barriers = count()  # so far; the same number in every process


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
        state = PartialState(cpu=on_cpu, timeout=TIMEOUT, **_store_of_restart())
    except dist.DistError as error:
        minutes = TIMEOUT.total_seconds() / 60
        raise RuntimeError(
            f"the processes have not all come together within {minutes:g} minutes: has one ended, or is MASTER_ADDR or "
            f"MASTER_PORT wrong? ({' '.join(str(error).split())})"
        ) from error
    if dist.is_initialized() and not was_initialized:
        atexit.register(_destroy_process_group)
    return state


def _store_of_restart() -> dict[str, Any]:
    """Arguments of `init_process_group` for processes that torchrun has started again, by `--max-restarts`.

    With static rendezvous, the default of `accelerate launch`, the launcher's store still has the addresses of the
    processes before, to which the new ones would try to connect.
    """
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    if attempt == "0" or dist.is_initialized():
        return {}
    store, rank, world_size = next(rendezvous("env://", timeout=TIMEOUT))
    store = dist.PrefixStore(f"attempt-{attempt}", store)  # pyright: ignore[reportPrivateImportUsage] -- torch documents it
    return {"store": store, "rank": rank, "world_size": world_size}


def _destroy_process_group() -> None:
    """Without it a process may abort at its end, after its work is done: gloo's threads are still running."""
    if dist.is_initialized():
        dist.destroy_process_group()


def wait_for_everyone(uneven: bool = False) -> None:
    """Wait until every process has called this as often.

    The main process waits for `TIMEOUT`, and the others for `LONG_TIMEOUT`, since it may have more to do. The wait goes
    through the store at which the processes have met. It ends with the main process or its launcher, and the others
    with it; they wait for all of `LONG_TIMEOUT` only if that machine is gone without closing its connections.

    Args:
        uneven: the others may have more to do as well, and the main process waits as long as they do.

    Raises:
        RuntimeError: a process has ended, or has not come in time.
    """
    if not dist.is_initialized():
        return
    store, name = dist.distributed_c10d._get_default_store(), f"barrier-{next(_barriers)}"
    timeout = LONG_TIMEOUT if uneven or dist.get_rank() != 0 else TIMEOUT
    try:
        if store.add(name, 1) == dist.get_world_size():
            store.set(f"{name}-over", "")
        store.wait([f"{name}-over"], timeout)
    except dist.DistError as error:
        raise RuntimeError(
            f"process {dist.get_rank()} has waited in vain for the others: has one ended? "
            f"({' '.join(str(error).split())})"
        ) from error
    PartialState().wait_for_everyone()  # the main process, which may hold the store, must not end before they know


@contextmanager
def main_process_first() -> Iterator[None]:
    """The main process runs the block, and then the others do; all wait for each other, for hours if need be."""
    is_main = process_state().is_main_process
    if not is_main:
        wait_for_everyone()
    yield
    if is_main:
        wait_for_everyone()
    wait_for_everyone(uneven=True)


def sum_over_processes(accelerator: Accelerator, tensor: torch.Tensor) -> torch.Tensor:
    """The sum of every process's tensor, on this process's device."""
    total = accelerator.reduce(tensor.to(accelerator.device), reduction="sum")
    assert isinstance(total, torch.Tensor)
    return total
