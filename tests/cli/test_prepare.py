# SPDX-License-Identifier: Apache-2.0
"""The command `prepare`: the example of the documents, and its errors."""

import re
import subprocess
from pathlib import Path

import pytest

from tests.test_readme import REPOSITORY
from vanilla_transformer.cli import main
from vanilla_transformer.console.shipped_configs import find_config
from vanilla_transformer.data.corpus import read_lines
from vanilla_transformer.training.configuration import load_run_config

PAGE = (REPOSITORY / "docs" / "preparation.md").read_text(encoding="utf-8")


def test_the_example_of_the_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    (block,) = re.findall(r"```bash\n(.*?)```", PAGE, flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    expected = [line.removeprefix("# ") for line in block.splitlines() if line.startswith("# ")]
    commands = [line for line in block.splitlines() if not line.startswith("# ")]
    for line in commands[:2]:
        subprocess.run(["bash", "-c", line], check=True)
    program, name, *arguments = commands[2].split()
    assert (program, name, main([name, *arguments])) == ("vanilla-transformer", "prepare", 0)
    assert capsys.readouterr().out.splitlines() == expected
    assert (tmp_path / "data" / "mine" / "report.md").is_file()
    assert list(read_lines("data/mine/mine.source")) == ["Two dogs play in the deep snow."]
    program, name, config, *overrides = commands[3].split()
    assert (program, name) == ("vanilla-transformer", "train")
    train = load_run_config(find_config(config), overrides).data.train
    assert train is not None
    assert Path(train.source or "").is_file()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["corpora.mine.path=missing.tsv"], "corpus file missing.tsv does not exist"),
        ([], "corpora is missing"),
        (["corpora.mine.path=a.txt"], "corpus file a.txt: the name must end in .tsv"),
    ],
)
def test_an_error_is_one_line(overrides: list[str], message: str, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("a\n", encoding="utf-8")
    assert main(["prepare", "prepare", *overrides]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"vanilla-transformer prepare: error: {message}")
