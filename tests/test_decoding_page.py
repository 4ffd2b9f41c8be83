# SPDX-License-Identifier: Apache-2.0
"""docs/decoding.md: its commands and snippets run, with a tiny model in the place of those that it names."""

import re
import shlex
import shutil
from pathlib import Path

import pytest

from tests.test_readme import REPOSITORY
from vanilla_transformer.cli import main

PAGE = (REPOSITORY / "docs" / "decoding.md").read_text(encoding="utf-8")
COMMANDS = [line for block in re.findall(r"^```bash\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
            for line in block.splitlines()]  # fmt: skip


@pytest.fixture
def folder(model_folder: Path, tmp_path: Path, monkeypatch) -> Path:
    for run in ("multi30k", "multi30k_rnn"):
        shutil.copytree(model_folder, tmp_path / "runs" / run / "model")
    for name in ("test.en", "test.de", "val.en", "val.de"):
        (tmp_path / name).write_text("a b c\nd e\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_runs(folder: Path, command: str, monkeypatch, capsysbinary):
    words = shlex.split(re.split(r" [<>] ", command)[0])
    assert words[0] == "vanilla-transformer"
    with (folder / "test.en").open(encoding="utf-8") as file:
        monkeypatch.setattr("sys.stdin", file)
        assert main(words[1:]) == 0
    assert capsysbinary.readouterr().out


def test_the_snippets_run_one_after_the_other(folder: Path):
    namespace = {"__name__": "decoding"}
    for source in re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE):
        exec(source, namespace)
