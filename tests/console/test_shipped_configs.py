# SPDX-License-Identifier: Apache-2.0
"""Shipped configs by their names."""

from pathlib import Path

import pytest

from vanilla_transformer.cli import main
from vanilla_transformer.console.shipped_configs import CONFIGS, config_names, find_config
from vanilla_transformer.training.configuration import load_run_config


def test_a_name_is_the_path_without_its_suffix():
    for name in ("small", "compare_cells", "paper/d_dropout_0.2", "rnn/cells/gru_none"):
        assert name in config_names()
        assert find_config(name) == CONFIGS / f"{name}.yaml"


def test_the_files_of_accelerates_launcher_are_no_configs_of_commands():
    assert not any("accelerate" in name for name in config_names())


def test_a_file_wins_over_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "paper").mkdir()
    assert find_config("paper/base") == CONFIGS / "paper" / "base.yaml"
    (tmp_path / "paper" / "base").touch()
    assert find_config("paper/base") == Path("paper/base")


def test_a_config_by_name_extends_the_file_beside_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = load_run_config(find_config("paper/big"))
    assert (config.model["d_model"], config.optimizer.warmup_steps) == (1024, 4000)


@pytest.mark.parametrize("arguments", [["train", "smal"], ["finetune", "smal"], ["compare", "smal"]])
def test_an_unknown_name_is_an_error_that_lists_the_names(arguments, capsys):
    assert main(arguments) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(f"error: configuration smal does not exist; by name there are {', '.join(config_names())}")
