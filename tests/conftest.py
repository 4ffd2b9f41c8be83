# SPDX-License-Identifier: Apache-2.0
"""Every test starts from the same seeds, without the network and without anything the user has cached."""

import ipaddress
import os
import random
import sys
import tempfile
from pathlib import Path

import pytest
import yaml

# Hugging Face libraries read their variables when they are imported, so this comes before any such import.
for name in [name for name in os.environ if name.startswith("HF_")]:
    del os.environ[name]  # a token or an endpoint of the user's
_home = tempfile.TemporaryDirectory(prefix="vanilla-transformer-tests-")  # removed when the process ends
os.environ["HF_HOME"] = _home.name
os.environ["HF_DATASETS_CACHE"] = os.path.join(_home.name, "datasets")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_EVALUATE_OFFLINE"] = "1"

in_xdist_worker = "PYTEST_XDIST_WORKER" in os.environ
if in_xdist_worker:
    os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start

import numpy as np  # noqa: E402 -- after the environment, like torch
import torch  # noqa: E402

if in_xdist_worker:
    torch.set_num_threads(1)  # there is a worker for each core


def _refuse_other_machines(event: str, arguments: tuple) -> None:
    """An audit hook; RuntimeError, because clients of the network retry or swallow every OSError."""
    if event != "socket.connect":
        return
    address = arguments[1]
    if isinstance(address, tuple) and not _is_loopback(address[0]):  # other addresses are paths of local sockets
        raise RuntimeError(f"a test tried to connect to {address}: tests are offline")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name
        return host == "localhost"


sys.addaudithook(_refuse_other_machines)


@pytest.fixture(autouse=True)
def seeds() -> None:
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)


def write_reversals(folder: Path, name: str, pairs: int, seed: int = 0) -> dict[str, str]:
    """A corpus to learn in seconds: letters, and the same letters in reverse. Returns its two files."""
    letters = random.Random(f"{name} {seed}")
    lines = [[letters.choice("abcdefgh") for _ in range(letters.randint(1, 6))] for _ in range(pairs)]
    sides = {"source": lines, "target": [line[::-1] for line in lines]}
    files = {side: folder / f"{name}.{side}" for side in sides}
    for side, texts in sides.items():
        files[side].write_text("".join(f"{' '.join(text)}\n" for text in texts), encoding="utf-8")
    return {side: str(path) for side, path in files.items()}


class TinyRun:
    """A configuration file of a run that takes a second, and the runs made from it."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.output_dir = folder / "run"
        self.config = folder / "tiny.yaml"
        values = {
            "data": {"train": write_reversals(folder, "train", 120), "name": "reversals"},
            "tokenizer": {"kind": "symbols"},
            "model": {"d_model": 16, "d_ff": 32, "num_layers": 1, "num_heads": 2, "dropout": 0.1},
            "training": {
                "output_dir": str(self.output_dir),
                "max_updates": 8,
                "max_source_tokens": 100,
                "max_target_tokens": 100,
                "checkpoint_every": 4,
                "log_every": 2,
                "trackers": [],
            },
            "optimizer": {"warmup_steps": 20},
            "generation": {"max_tokens_beyond_source": 3},
        }
        self.config.write_text(yaml.safe_dump(values), encoding="utf-8")

    def validation(self) -> list[str]:
        """Overrides that add a validation corpus."""
        files = write_reversals(self.folder, "validation", 12)
        return [f"data.validation.{side}={path}" for side, path in files.items()]

    def load(self, *overrides: str):
        from vanilla_transformer.training.configuration import load_run_config

        return load_run_config(self.config, list(overrides))

    def train(self, *overrides: str):
        """One run, as if in a process of its own."""
        from accelerate.state import AcceleratorState

        from vanilla_transformer.training.loop import train

        AcceleratorState._reset_state(reset_partial_state=True)
        return train(self.load(*overrides))


@pytest.fixture
def tiny_run(tmp_path: Path) -> TinyRun:
    return TinyRun(tmp_path)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished model of letters in reverse that has learnt little; not to be written to."""
    run = TinyRun(tmp_path_factory.mktemp("model"))
    run.train("training.max_updates=200", "training.checkpoint_every=100")
    return run.output_dir / "model"
