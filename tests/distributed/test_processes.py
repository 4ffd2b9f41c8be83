# SPDX-License-Identifier: Apache-2.0
"""Processes that meet over gloo, and one that waits for another which was killed before."""

import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tests.distributed.launching import free_port, start_together
from vanilla_transformer.distributed import processes


def meet(folder: Path, patience: timedelta | None = None) -> None:
    """For `start_together`: what came of it, in a file for each process."""
    if patience is not None:
        processes.RENDEZVOUS_TIMEOUT = patience
    try:
        state = processes.process_state()
    except RuntimeError as error:
        (folder / "error").write_text(str(error), encoding="utf-8")
        return
    store: Any = dist.distributed_c10d._get_default_store()
    of_group = dist.distributed_c10d._get_default_group()._get_backend(torch.device("cpu")).options._timeout
    torch.save([store.timeout, of_group], folder / f"{state.process_index}.pt")
    state.wait_for_everyone()  # the other may still be connecting


def alone_of_two(folder: Path) -> None:
    """For `start_together`, as the only process: it is told of another, which never comes."""
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    meet(folder, timedelta(seconds=3))


def test_timeout_is_longer_after_the_rendezvous(tmp_path: Path):
    start_together(meet, 2, tmp_path)
    for rank in (0, 1):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=False)
        assert found == [processes.COLLECTIVE_TIMEOUT] * 2
    assert processes.RENDEZVOUS_TIMEOUT < processes.COLLECTIVE_TIMEOUT


def test_rendezvous_times_out_without_a_process(tmp_path: Path):
    start_together(alone_of_two, 1, tmp_path)
    said = (tmp_path / "error").read_text("utf-8")
    assert said.startswith("the processes have not all come together within 0.05 minutes: has one ended")
    assert "1/2 clients joined" in said
    assert "\n" not in said
