# SPDX-License-Identifier: Apache-2.0
"""The command `sweep`: what it prints, and a real sweep that is killed and goes on."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import TinyRun, write_reversals
from vanilla_transformer.cli import main
from vanilla_transformer.tuning import sweep


@pytest.fixture
def config(tiny_run: TinyRun) -> Path:
    values = {
        "output_dir": str(tiny_run.folder / "out"),
        "runs": {"Transformer": tiny_run.config.name},
        "metric": "perplexity",
        "updates": 4,
        "trials": 2,
        "rungs": 2,
        "reduction_factor": 2,
        "space": {"optimizer": {"warmup_steps": [5, 20, 80]}},
        "data": {"validation": write_reversals(tiny_run.folder, "validation", 12)},
    }
    path = tiny_run.folder / "sweep.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


@pytest.fixture
def trained_by_formula(monkeypatch) -> None:
    """The perplexity is the number of warm-up updates."""
    facts = {"minutes": 0.5, "epochs": 1.0, "parameters": 100, "precision": "no", "updates": 4}
    monkeypatch.setattr(sweep, "train_trial", lambda run, metric: facts | {"score": float(run.optimizer.warmup_steps)})


def test_cost_progress_and_the_best_overrides_are_printed(config: Path, trained_by_formula, capsys):
    assert main(["sweep", str(config)]) == 0
    output = capsys.readouterr()
    first, *others = output.out.splitlines()
    assert re.fullmatch(r"Transformer: After 4 updates: 5.00, by trial [12]; the run's own settings: 20.00.", first)
    assert others == ["  optimizer.warmup_steps=5", f"report: {config.parent / 'out' / 'report.md'}"]
    # 3 trials of 2 updates, 2 of 4.
    assert output.err.splitlines()[0].endswith("for each run 14 updates, in all 14 updates")
    assert output.err.count("rung 1 of 2: ") == 3
    assert output.err.count("rung 2 of 2: ") == 2


def test_an_error_is_one_line(config: Path, capsys):
    assert main(["sweep", str(config), "space.optimizer.warmup_steps=[0, 20]"]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error == (
        "vanilla-transformer sweep: error: space of Transformer, optimizer.warmup_steps: optimizer.warmup_steps=0 must "
        "be at least 1"
    )


@pytest.mark.slow
def test_a_killed_sweep_goes_on(config: Path):
    command = [sys.executable, "-m", "vanilla_transformer.cli", "sweep", str(config), "rungs=1"]
    outcomes = [
        config.parent / "out" / "trials" / "Transformer" / f"{n:03}" / "rung_1" / "outcome.json" for n in (0, 1)
    ]
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)
    try:
        while not (outcomes[1].exists() and process.poll() is None):
            assert process.poll() is None
            time.sleep(0.05)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    first = outcomes[0].read_bytes()
    assert json.loads(outcomes[1].read_text("utf-8"))["result"] is None
    subprocess.run(command, check=True, capture_output=True)
    assert outcomes[0].read_bytes() == first
    results: dict[str, Any] = json.loads((config.parent / "out" / "trials.json").read_text("utf-8"))
    trials = results["runs"]["Transformer"]["trials"]
    assert [[(outcome["updates"], outcome["error"]) for outcome in trial["rungs"]] for trial in trials] == [
        [(4, None)]
    ] * 3
    assert (config.parent / "out" / "report.md").is_file()
