# SPDX-License-Identifier: Apache-2.0
"""An output that cannot be written is an error before any work; the check leaves nothing behind."""

import os
from pathlib import Path

import pytest

from vanilla_transformer.benchmark import command as benchmark
from vanilla_transformer.cli import main
from vanilla_transformer.console.outputs import check_output_file, check_output_folder
from vanilla_transformer.demo import command as demo


@pytest.fixture
def taken(tmp_path) -> Path:
    """A file, where paths go on as if it were a folder."""
    path = tmp_path / "taken"
    path.write_text("as it was", encoding="utf-8")
    return path


def test_check_of_writable_outputs_leaves_no_trace(tmp_path, taken):
    check_output_file(tmp_path / "new", "--output")
    check_output_file(taken, "--output")
    check_output_file(tmp_path / "a" / "b", "--output", makes_folders=True)
    check_output_file(os.devnull, "--output")
    check_output_folder(tmp_path / "c" / "d", "--output")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]
    assert taken.read_text(encoding="utf-8") == "as it was"


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("missing/x", "--output .*/missing/x: there is no folder .*/missing; make it first"),
        (".", "is a folder, not a file; name a file"),
        ("taken/x", r"taken/x cannot be written \(Not a directory\); choose another place"),
        ("x" * 300, r"cannot be written \(File name too long\)"),
    ],
)
def test_unwritable_file_is_one_line(tmp_path, taken, path: str, said: str):
    with pytest.raises(OSError, match=said) as caught:
        check_output_file(tmp_path / path, "--output")
    assert "\n" not in str(caught.value)


def test_folder_below_a_file_is_one_line(taken):
    with pytest.raises(OSError, match=r"^--output .*taken/a/b cannot be written \(Not a directory\); choose another"):
        check_output_folder(taken / "a" / "b", "--output")


def test_check_does_not_open_a_pipe(tmp_path):
    """A reader of the pipe would take the closing for its end."""
    os.mkfifo(tmp_path / "pipe")
    check_output_file(tmp_path / "pipe", "--output")


# The inputs do not exist either, which would be the error if they were opened first.
COMMANDS = {
    "evaluate": lambda out: main(["evaluate", "/nowhere", "--source", "s", "--reference", "r", "--output", out]),
    "average": lambda out: main(["average", "/nowhere", "--output", out]),
    "plot positions": lambda out: main(["plot", "positions", "--output", f"{out}.png"]),
    "plot attention": lambda out: main(["plot", "attention", "/nowhere", "a", "--output", f"{out}.png"]),
    "plot curves": lambda out: main(["plot", "curves", "/nowhere", "--output", f"{out}.png"]),
    "pull": lambda out: main(["pull", "user/name", out]),
    "demo": lambda out: demo.main(["/nowhere", "--write-space", out]),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_checks_its_output_first(taken, capsys, name: str):
    assert COMMANDS[name](str(taken / "out")) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "taken/out" in line
    assert "cannot be written (Not a directory); choose another place" in line


def test_benchmark_checks_its_output_first(taken, capsys, monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])
    assert benchmark.main(["decode", f"output={taken}/decode.json"]) == 1
    assert "cannot be written (Not a directory)" in capsys.readouterr().err


def test_existing_output_survives_a_failure(taken):
    assert main(["evaluate", "/nowhere", "--source", "s", "--reference", "r", "--output", str(taken)]) == 1
    assert taken.read_text(encoding="utf-8") == "as it was"
