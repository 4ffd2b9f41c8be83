# SPDX-License-Identifier: Apache-2.0
"""Several processes on the CPUs of this machine, over gloo."""

import multiprocessing
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch.multiprocessing import start_processes
from transformers import AutoModelForSeq2SeqLM

from vanilla_transformer.training.configuration import load_run_config
from vanilla_transformer.training.loop import train

REPOSITORY = Path(__file__).parents[2]
CONFIGS = REPOSITORY / "configs" / "accelerate"
TRAIN = str(REPOSITORY / "scripts" / "train.py")
TIMEOUT = 600  # seconds
FSDP2 = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}  # set by `accelerate launch` for fsdp2.yaml

# Imported once, by the server from which processes are forked. All tests of a process share one server, so this is the
# only list.
IMPORTED = ("tests.conftest", "tests.distributed.launching", "tests.distributed.sharded_steps")
multiprocessing.set_forkserver_preload([*IMPORTED, "vanilla_transformer.cli.train"])


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def launch(arguments: list[str], processes: int = 2, config: str | None = None) -> str:
    """The standard output of `python *arguments` in several processes; the test fails if the command does.

    Args:
        config: the file of configs/accelerate by which `accelerate launch` starts them; `None`: `torchrun` does.
    """
    if config is None:
        launcher = ["torch.distributed.run", "--nproc_per_node", str(processes), "--master_port", str(free_port())]
    else:
        launcher = ["accelerate.commands.launch", "--config_file", str(CONFIGS / f"{config}.yaml")]
        launcher += ["--num_processes", str(processes)]
    result = subprocess.run(
        [sys.executable, "-m", *launcher, *arguments],
        capture_output=True,
        encoding="utf-8",
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=TIMEOUT,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


def start_together(function: Callable, processes: int, *arguments, **environment: str) -> None:
    """Call `function(*arguments)` in several processes, each with the environment that a launcher would give it."""
    start_processes(
        _with_rank, (function, arguments, processes, free_port(), environment), processes, start_method="forkserver"
    )


def _with_rank(rank: int, function: Callable, arguments: tuple, processes: int, port: int, environment: dict) -> None:
    os.environ |= environment
    if processes > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    function(*arguments)


def train_here(config: Path, overrides: list[str]) -> None:
    """For `start_together`: a run."""
    train(load_run_config(config, overrides))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return AutoModelForSeq2SeqLM.from_pretrained(folder).state_dict()
