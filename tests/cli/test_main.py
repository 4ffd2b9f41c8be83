# SPDX-License-Identifier: Apache-2.0
"""The command as a whole: help, usage, errors in one line."""

import subprocess
import sys
from pathlib import Path

import pytest

from vanilla_transformer.cli import SUBCOMMANDS, main


def status_of(*arguments: str) -> int:
    """The exit status, whether returned or raised."""
    try:
        return main(list(arguments))
    except SystemExit as error:
        return int(error.code or 0)


@pytest.mark.parametrize("arguments", [["--help"], *([name, "--help"] for name in SUBCOMMANDS)], ids=" ".join)
def test_help_needs_none_of_the_large_libraries(arguments: list[str]):
    """They take seconds to import; without them the answer comes at once."""
    code = (
        "import sys; from vanilla_transformer.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "print([n for n in ('torch', 'transformers', 'datasets', 'accelerate', 'numpy') if n in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, encoding="utf-8", check=True)
    assert result.stdout.splitlines()[0].startswith("usage: vanilla-transformer")
    assert result.stdout.splitlines()[-1] == "[]"


def test_translating_imports_only_what_a_model_needs(model_folder: Path):
    """Importing `PreTrainedModel` is most of the time of translating one line."""
    code = """
import sys
import torch
from transformers import PreTrainedModel
from vanilla_transformer.cli import main
def libraries(): return {name.partition(".")[0] for name in sys.modules}
before = libraries()
assert main(["translate", sys.argv[1], "--quiet"]) == 0
print(*libraries() - before - set(sys.stdlib_module_names), file=sys.stderr)
print(*libraries(), file=sys.stderr)
"""
    command = [sys.executable, "-W", "ignore", "-c", code, str(model_folder)]
    done = subprocess.run(command, input="a b\n", capture_output=True, encoding="utf-8", check=True)
    added, imported = (set(line.split()) for line in done.stderr.splitlines())
    assert added <= {"tokenizers", "sentencepiece", "psutil"}  # by transformers' tokenizers and `generate`
    assert imported.isdisjoint(
        {"datasets", "evaluate", "matplotlib", "pandas", "peft", "sacrebleu", "sklearn", "tensorboard"}
    )


@pytest.mark.parametrize("name", SUBCOMMANDS)
def test_each_command_says_what_it_does(name: str, capsys):
    assert status_of("--help") == 0
    shown = " ".join(capsys.readouterr().out.split())
    first_line = (SUBCOMMANDS[name].__doc__ or "").splitlines()[0]
    assert f" {name} {first_line[:40]}" in shown


@pytest.mark.parametrize(
    "arguments",
    [
        ["paint"],
        ["translate"],
        ["translate", "model", "--beans", "4"],
        ["translate", "model", "--beams", "0"],
        ["translate", "model", "--beams", "four"],
        ["evaluate", "model"],
    ],
)
def test_wrong_usage_is_status_2_and_says_how(arguments: list[str], capsys):
    assert status_of(*arguments) == 2
    message = capsys.readouterr().err
    assert message.startswith("usage: vanilla-transformer")
    assert "error:" in message.splitlines()[-1]


def test_no_command_shows_the_commands_and_where_to_begin(capsys):
    assert status_of() == 2
    message = capsys.readouterr().err
    assert message.startswith("usage: vanilla-transformer")
    assert all(f"    {name}" in message for name in SUBCOMMANDS)
    assert "Begin with `vanilla-transformer quickstart`" in message


def test_an_error_is_one_line_and_status_1(capsys, tmp_path):
    assert status_of("train", str(tmp_path / "nowhere.yaml")) == 1
    message = capsys.readouterr().err
    assert message == f"vanilla-transformer train: error: configuration {tmp_path}/nowhere.yaml does not exist\n"


def test_debug_shows_where_an_error_comes_from(tmp_path):
    with pytest.raises(FileNotFoundError):
        main(["train", str(tmp_path / "nowhere.yaml"), "--debug"])
