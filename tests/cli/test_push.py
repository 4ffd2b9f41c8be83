# SPDX-License-Identifier: Apache-2.0
"""What `push` says without a Hub; tests/hub/ has the rest."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hub.model_folders import write_model_folder
from vanilla_transformer.cli import main

SCRIPT = Path(__file__).parents[2] / "scripts" / "push_to_hub.py"


@pytest.fixture(scope="module")
def complete(tmp_path_factory) -> Path:
    return write_model_folder(tmp_path_factory.mktemp("complete") / "model")


@pytest.fixture
def folder(complete: Path, tmp_path: Path) -> Path:
    return shutil.copytree(complete, tmp_path / "model")


def test_dry_run_lists_files_with_sizes_and_files_not_sent(folder: Path, capsys):
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    sizes = {name: len(path.read_bytes()) for name, path in files.items()}
    (folder / "notes.txt").write_text("mine", encoding="utf-8")
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints/step.json").write_text("{}", encoding="utf-8")
    assert main(["push", str(folder), "ann/model", "--dry-run"]) == 0
    rows = [line.split(None, 1) for line in capsys.readouterr().out.splitlines()]
    assert rows[: len(sizes)] == [[f"{sizes[name]:,}", name] for name in sorted(sizes)]
    assert rows[len(sizes) :] == [
        [f"{sum(sizes.values()):,}", f"bytes in {len(sizes)} files"],
        ["not", "sent  checkpoints/step.json"],
        ["not", "sent  notes.txt"],
    ]


@pytest.mark.parametrize("options", [[], ["--dry-run"]], ids=["push", "dry-run"])
def test_all_problems_are_listed(folder: Path, capsys, options):
    (folder / "LICENSE").unlink()
    (folder / "README.md").write_text("no metadata", encoding="utf-8")
    (folder / "optimizer.pt").write_bytes(b"")
    assert main(["push", str(folder), "ann/model", *options]) == 1
    output = capsys.readouterr()
    *listed, last = [line for line in output.err.splitlines() if not line.startswith("Repo card metadata")]
    assert [line.split()[:2] for line in listed] == [["-", "LICENSE"], ["-", "README.md"], ["-", "optimizer.pt"]]
    assert last == (
        f"vanilla-transformer push: error: {folder} cannot be published for the 3 reason(s) above; nothing was sent"
    )
    assert output.out == ""


@pytest.mark.parametrize("options", [[], ["--dry-run"]], ids=["push", "dry-run"])
@pytest.mark.parametrize(
    ("repository", "said"),
    [("model", "the repository must be user/name, not 'model'"), ("ann/a b", "Repo id must use alphanumeric chars")],
)
def test_invalid_repository_name(complete: Path, capsys, repository, said, options):
    assert main(["push", str(complete), repository, *options]) == 1
    message = capsys.readouterr().err
    assert message.startswith(f"vanilla-transformer push: error: {said}")
    assert message.count("\n") == 1


def test_missing_folder(tmp_path: Path, capsys):
    assert main(["push", str(tmp_path / "nowhere"), "ann/model"]) == 1
    said = f"vanilla-transformer push: error: model folder {tmp_path}/nowhere does not exist\n"
    assert capsys.readouterr().err == said


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["model"],
        ["model", "ann/model", "--token", "hf_x"],
        ["model", "ann/model", "--revision"],
        ["model", "ann/model", "--with", "marian,fairseq"],
    ],
)
def test_wrong_usage(arguments: list[str], capsys):
    """A token on the command line would stay in the shell's history."""
    with pytest.raises(SystemExit) as ended:
        main(["push", *arguments])
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("usage: vanilla-transformer")


def test_script_runs_the_command(complete: Path, capsys):
    arguments = [str(complete), "ann/model", "--dry-run"]
    assert main(["push", *arguments]) == 0
    script = subprocess.run(
        [sys.executable, str(SCRIPT), *arguments], capture_output=True, encoding="utf-8", check=True
    )
    assert script.stdout == capsys.readouterr().out
