# SPDX-License-Identifier: Apache-2.0
"""Two processes on this machine, over gloo, as `torchrun` starts them."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM

import vanilla_transformer  # noqa: F401 -- registers the models with transformers
from tests.conftest import write_reversals

pytestmark = pytest.mark.slow
REPOSITORY = Path(__file__).parents[2]
TRAIN = [str(REPOSITORY / "scripts" / "train.py")]


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def launch(arguments: list[str], processes: int) -> str:
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", str(processes), "--master_port", str(free_port())]
    result = subprocess.run(
        [sys.executable, *launcher, *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return AutoModelForSeq2SeqLM.from_pretrained(folder).state_dict()


def test_two_processes_train_as_one_that_accumulates(tiny_run):
    """An epoch is one update either way, so the gradients are of the same pairs."""
    options = [str(tiny_run.config), "model.dropout=0.0", "training.max_epochs=5", "training.max_updates=5"]
    options += [f"training.max_{side}_tokens=280" for side in ("source", "target")]
    alone, together = tiny_run.folder / "alone", tiny_run.folder / "together"
    launch([*TRAIN, *options, f"training.output_dir={alone}", "training.gradient_accumulation_steps=100"], 1)
    launch([*TRAIN, *options, f"training.output_dir={together}", "training.gradient_accumulation_steps=50"], 2)
    results = [json.loads((folder / "results.json").read_text()) for folder in (alone, together)]
    assert results[0]["target_tokens"] == results[1]["target_tokens"]
    assert results[1]["hardware"].startswith("2 x ")
    expected = weights(alone / "model")
    for name, weight in weights(together / "model").items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-3, atol=1e-5)


def test_two_processes_resume_as_if_never_stopped(tiny_run):
    whole, parts = tiny_run.folder / "whole", tiny_run.folder / "parts"
    options = [str(tiny_run.config), *tiny_run.validation(), "training.validate_every=4"]
    launch([*TRAIN, *options, "training.max_updates=9", f"training.output_dir={whole}"], 2)
    for updates in (4, 9):
        launch([*TRAIN, *options, f"training.max_updates={updates}", f"training.output_dir={parts}"], 2)
    expected = weights(whole / "checkpoints" / "update-00000009")
    for name, weight in weights(parts / "checkpoints" / "update-00000009").items():
        assert torch.equal(weight, expected[name])


def test_two_processes_score_as_one(model_folder, tmp_path):
    files = write_reversals(tmp_path, "test", 31)
    arguments = ["-m", "vanilla_transformer.cli", "evaluate", str(model_folder), "--json"]
    arguments += ["--source", files["source"], "--reference", files["target"]]
    assert json.loads(launch(arguments, 2)) == json.loads(launch(arguments, 1))
