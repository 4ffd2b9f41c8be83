# SPDX-License-Identifier: Apache-2.0
"""What `pull` says without a Hub; tests/hub/ has the rest."""

from pathlib import Path

import pytest

from vanilla_transformer.cli import main


def test_offline(tmp_path: Path, capsys):
    assert main(["pull", "ann/model", str(tmp_path / "model")]) == 1
    said = "vanilla-transformer pull: error: cannot reach ann/model: HF_HUB_OFFLINE is set; unset it\n"
    assert capsys.readouterr().err == said
    assert list(tmp_path.iterdir()) == []


def test_folder_that_is_not_empty(tmp_path: Path, capsys):
    (tmp_path / "mine").write_text("mine", encoding="utf-8")
    assert main(["pull", "ann/model", str(tmp_path)]) == 1
    said = f"vanilla-transformer pull: error: {tmp_path} exists and is not empty; choose another folder\n"
    assert capsys.readouterr().err == said


@pytest.mark.parametrize("repository", ["ann/a b", "a/b/c", "../model"])
def test_invalid_repository_name(tmp_path: Path, capsys, repository):
    assert main(["pull", repository, str(tmp_path / "model")]) == 1
    message = capsys.readouterr().err
    assert repository in message
    assert message.count("\n") == 1


@pytest.mark.parametrize("arguments", [[], ["ann/model"], ["ann/model", "folder", "--private"]])
def test_wrong_usage(arguments: list[str], capsys):
    with pytest.raises(SystemExit) as ended:
        main(["pull", *arguments])
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("usage: vanilla-transformer")
