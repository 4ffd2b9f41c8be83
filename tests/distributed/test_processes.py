# SPDX-License-Identifier: Apache-2.0
"""Processes that meet over gloo, wait for each other, and lose one another."""

import os
import signal
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing import ProcessExitedException

from tests.distributed.launching import free_port, start_together
from vanilla_transformer.distributed import processes
from vanilla_transformer.distributed.processes import main_process_first, process_state, wait_for_everyone


def meet(folder: Path, timeout: timedelta | None = None) -> None:
    """For `start_together`: what came of it, in a file for each process."""
    if timeout is not None:
        processes.TIMEOUT = timeout
    try:
        state = process_state()
    except RuntimeError as error:
        (folder / "error").write_text(str(error), encoding="utf-8")
        return
    store: Any = dist.distributed_c10d._get_default_store()
    of_group = dist.distributed_c10d._get_default_group()._get_backend(torch.device("cpu")).options._timeout
    torch.save([store.timeout, of_group], folder / f"{state.process_index}.pt")
    wait_for_everyone()  # the other may still be connecting


def alone_of_two(folder: Path) -> None:
    """For `start_together`, as the only process: it is told of another, which never comes."""
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    meet(folder, timedelta(seconds=3))


def test_timeout_of_collectives_is_minutes(tmp_path: Path):
    start_together(meet, 2, tmp_path)
    for rank in (0, 1):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=False)
        assert found == [processes.TIMEOUT] * 2
    assert processes.TIMEOUT <= timedelta(minutes=10) < processes.LONG_TIMEOUT


def test_rendezvous_times_out_without_a_process(tmp_path: Path):
    start_together(alone_of_two, 1, tmp_path)
    said = (tmp_path / "error").read_text("utf-8")
    assert said.startswith("the processes have not all come together within 0.05 minutes: has one ended")
    assert "1/2 clients joined" in said
    assert "\n" not in said


def test_waiting_alone_is_no_wait():
    wait_for_everyone()
    with main_process_first():
        assert process_state().num_processes == 1


def work_longer_than_a_collective(folder: Path) -> None:
    """The main process works until a collective of its own has timed out; the other waits for it all the while."""
    processes.TIMEOUT = timedelta(seconds=3)
    state = process_state()
    others = dist.new_group(timeout=timedelta(seconds=4))
    with main_process_first():
        if state.is_main_process:
            with pytest.raises(RuntimeError):
                dist.barrier(others)
            (folder / "prepared").touch()
        assert (folder / "prepared").exists()
    total = torch.ones(1)
    dist.all_reduce(total)
    assert total == 2


@pytest.mark.slow
def test_others_wait_longer_for_the_main_process_than_for_a_collective(tmp_path: Path):
    start_together(work_longer_than_a_collective, 2, tmp_path)


def lose(folder: Path, lost: int, stopped: bool, waits: bool) -> None:
    """Process `lost` ends, or is stopped; what another says of it, in a file."""
    processes.TIMEOUT = timedelta(seconds=5)
    rank = process_state().process_index
    wait_for_everyone()
    if rank == lost and stopped:
        (folder / "pid").write_text(str(os.getpid()), encoding="utf-8")
        os.kill(os.getpid(), signal.SIGSTOP)
    elif rank == lost:
        os._exit(0)  # by another status `start_processes` would end the others
    try:
        if waits:
            wait_for_everyone()
        else:
            dist.all_reduce(torch.ones(1))
    except RuntimeError as error:
        (folder / "said").write_text(str(error), encoding="utf-8")
    if stopped:
        os.kill(int((folder / "pid").read_text("utf-8")), signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, 1])
def test_a_stopped_process_does_not_hold_the_others_in_a_collective(tmp_path: Path, lost: int):
    """As if its machine were gone: nothing closes its connections."""
    with pytest.raises(ProcessExitedException):
        start_together(lose, 2, tmp_path, lost, True, False)
    assert "imed out" in (tmp_path / "said").read_text("utf-8")


@pytest.mark.slow
def test_a_stopped_process_does_not_hold_the_waiting_main_one(tmp_path: Path):
    with pytest.raises(ProcessExitedException):
        start_together(lose, 2, tmp_path, 1, True, True)
    assert "process 0 has waited in vain for the others" in (tmp_path / "said").read_text("utf-8")


@pytest.mark.slow
def test_an_ended_main_process_does_not_hold_those_that_wait_for_it(tmp_path: Path):
    start_together(lose, 2, tmp_path, 0, False, True)
    assert "process 1 has waited in vain for the others" in (tmp_path / "said").read_text("utf-8")
