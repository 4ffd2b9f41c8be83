# SPDX-License-Identifier: Apache-2.0
"""The folder of a Space, against what the Hub reads of it and by running it."""

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

from vanilla_transformer.demo.space import write_space


@pytest.fixture
def space(tmp_path, transformer, rnn) -> Path:
    return write_space(tmp_path / "new" / "space", [transformer, rnn])


def test_readme_and_requirements_for_the_hub(space):
    _, front_matter, text = (space / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    values = yaml.safe_load(front_matter)
    assert (values["sdk"], values["app_file"]) == ("gradio", "app.py")
    assert values["sdk_version"] == version("gradio")
    assert values["title"] in text
    requirements = (space / "requirements.txt").read_text(encoding="utf-8").split()
    assert f"transformers=={version('transformers')}" in requirements
    assert all("+" not in line for line in requirements)  # builds for one machine, which no index has


def test_the_models_are_in_it(space, transformer_folder, rnn_folder):
    for name, folder in {"1": transformer_folder, "2": rnn_folder}.items():
        weights = Path("model.safetensors")
        assert (space / "models" / name / weights).read_bytes() == (Path(folder) / weights).read_bytes()


def test_two_models_of_one_kind_have_a_folder_each(tmp_path, transformer):
    space = write_space(tmp_path / "space", [transformer, transformer])
    assert {path.name for path in (space / "models").iterdir()} == {"1", "2"}


def test_an_existing_folder_is_not_overwritten(tmp_path, transformer):
    with pytest.raises(ValueError, match="it exists already"):
        write_space(tmp_path, [transformer])


@pytest.mark.slow
def test_the_space_runs_with_its_own_code(space):
    code = (
        "import app, vanilla_transformer; print(vanilla_transformer.__file__); "
        "print(*[model.label for model in app.demo.blocks.values() if model.__class__.__name__ == 'Image']); "
        "print(app.demo.analytics_enabled)"
    )
    environment = os.environ | {"PYTHONPATH": "", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=space, env=environment, capture_output=True, encoding="utf-8", check=False
    )
    assert done.returncode == 0, done.stderr
    assert str(space) in done.stdout
    assert done.stdout.strip().endswith("False")
