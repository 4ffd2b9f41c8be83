# SPDX-License-Identifier: Apache-2.0
"""Sweeps whose trials are not trained: a formula of the settings and the budget gives their scores."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import write_reversals
from vanilla_transformer.training.configuration import RunConfig
from vanilla_transformer.tuning import sweep as sweep_module
from vanilla_transformer.tuning.configuration import SweepConfig, load_sweep_config
from vanilla_transformer.tuning.sweep import sweep

RNN = {"model_type": "rnn_seq2seq", "hidden_size": 12, "embedding_size": 8}


@dataclass
class ExampleSweep:
    """The file of a sweep, and what it trains."""

    folder: Path
    score: Callable[[RunConfig], float]
    trained: list[RunConfig] = field(default_factory=list)

    def load(self, **changes: Any) -> SweepConfig:
        values: dict[str, Any] = {
            "output_dir": str(self.folder / "out"),
            "runs": {"Transformer": "tiny.yaml", "RNN": "rnn.yaml"},
            "metric": "word error rate",
            "updates": 36,
            "trials": 9,
            "space": {"optimizer": {"learning_rate_scale": {"low": 0.1, "high": 10, "log": True}}},
            "data": {"validation": write_reversals(self.folder, "validation", 12)},
        }
        (self.folder / "sweep.yaml").write_text(yaml.safe_dump(values | changes, sort_keys=False), encoding="utf-8")
        return load_sweep_config(self.folder / "sweep.yaml")

    def run(self, **changes: Any) -> dict[str, Any]:
        return sweep(self.load(**changes), lambda name, trial: None)

    def train(self, run: RunConfig, metric: str) -> dict[str, Any]:
        """In place of `train_trial`."""
        self.trained.append(run)
        facts = {"minutes": 0.5, "epochs": 1.0, "parameters": 100, "precision": "no"}
        return facts | {"score": self.score(run), "updates": run.training.max_updates}


@pytest.fixture
def example(tiny_run, monkeypatch) -> ExampleSweep:
    """By default, a rate of 2 is the best, and all scores improve with the budget."""
    rnn = {"extends": tiny_run.config.name, "model": RNN, "training": {"attention": "eager"}}
    (tiny_run.folder / "rnn.yaml").write_text(yaml.safe_dump(rnn), encoding="utf-8")
    example = ExampleSweep(
        tiny_run.folder,
        lambda run: (run.optimizer.learning_rate_scale - 2) ** 2 + 100 / (run.training.max_updates or 1),
    )
    monkeypatch.setattr(sweep_module, "train_trial", example.train)
    monkeypatch.setattr(sweep_module, "write_report", lambda results, folder: None)  # whose plots take a second
    return example
