# SPDX-License-Identifier: Apache-2.0
"""The commands of README and docs run as they stand: long ones shortened by their own settings (`SET`, overrides)."""

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import ExitStack, chdir
from pathlib import Path

import pytest

from tests.hub.hub_client import HubClient
from tests.hub.hub_server import HubServer
from vanilla_transformer.cli import _parser, main

REPOSITORY = Path(__file__).parents[1]
PAGES = ("README.md", "docs/models.md", "docs/reference.md")  # in the order of reading: one goes on from the other
README = "\n".join((REPOSITORY / page).read_text(encoding="utf-8") for page in PAGES)
SHORT_TRAINING = ["training.max_updates=2", "training.mixed_precision='no'", "training.trackers=[]"]
SHORT_TRAINING += ["model.d_model=16", "model.d_ff=16", "tokenizer.vocab_size=300"]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)


def commands() -> list[str]:
    lines = [line for block in blocks("bash") for line in block.splitlines()]
    return [line.split("  #")[0].strip() for line in lines if line.strip()]


def run(arguments: list[str] | str, **options) -> str:
    """Standard output; the test fails if the command does."""
    shell = isinstance(arguments, str)
    options = {"env": ENVIRONMENT} | options
    result = subprocess.run(arguments, shell=shell, capture_output=True, encoding="utf-8", check=False, **options)
    assert result.returncode == 0, f"{arguments}\n{result.stdout[-1000:]}\n{result.stderr[-3000:]}"
    return result.stdout


def test_every_command_is_tested_here():
    known = [*("make quickstart", "make test"), *(line for line in commands() if line.startswith(".venv/bin/"))]
    others = [line for line in commands() if line not in known]
    assert [line.split()[0] for line in others] == ["accelerate", "torchrun"]
    ours = [line.split()[1] for line in known[2:] if "/bin/vanilla-transformer" in line]
    assert ours == ["train", "translate", "evaluate", "plot", "plot", "push", "push", "push", "pull"]
    assert [line.split()[:2] for line in known[2:] if "/bin/vanilla-transformer" not in line] == [
        [".venv/bin/pip", "install"],
        [".venv/bin/python", "scripts/demo.py"],
    ]


def test_make_gives_the_quickstart_its_words_and_changes(tmp_path: Path):
    """What the command does with them, tests/cli/test_quickstart.py looks at."""
    command = tmp_path / "bin" / "vanilla-transformer"
    command.parent.mkdir()
    command.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n', encoding="utf-8")
    command.chmod(0o755)
    make = ["make", "--no-print-directory", "quickstart", f"VENV={tmp_path}", "-o", f"{tmp_path}/.installed-quickstart"]
    assert run(make, cwd=REPOSITORY).splitlines() == ["quickstart"]
    more = ["WORDS=cat it's", "SET=training.max_updates=3 training.trackers=[]"]
    arguments = _parser().parse_args(run([*make, *more], cwd=REPOSITORY).splitlines())
    assert arguments.command == "quickstart"
    assert arguments.words == ["cat", "it's"]
    assert arguments.overrides == ["training.max_updates=3", "training.trackers=[]"]


@pytest.mark.slow
def test_quickstart(tmp_path: Path):
    for name in ("train", "validation"):
        (tmp_path / f"{name}.spelling").write_text("c a t\nt a c k\na c t\n", encoding="utf-8")
        (tmp_path / f"{name}.phonemes").write_text("K AE T\nT AE K\nAE K T\n", encoding="utf-8")
    (tmp_path / "test.json").write_text(
        json.dumps({"tact": ["T AE K T"]}), encoding="utf-8"
    )  # where it is, the others are whole
    changes = [f"data.{name}.{side}={tmp_path}/{name}.{suffix}" for name in ("train", "validation")
               for side, suffix in (("source", "spelling"), ("target", "phonemes"))]  # fmt: skip
    changes += [f"training.output_dir={tmp_path}/run", "training.max_updates=3", "training.trackers=[]"]
    venv = sys.prefix
    output = run(
        [
            *("make", "quickstart", f"VENV={venv}", "WORDS=cat", f"SET={' '.join(changes)}"),
            *("-o", f"{venv}/.installed-quickstart"),  # what this test runs in is installed already
        ],
        cwd=REPOSITORY,
    )
    assert "1 words never seen in training:" in output


@pytest.mark.parametrize("target", ["quickstart", "test", "test-random", "test-slow", "check"])
def test_make_has_the_target(target: str):
    assert run(["make", "-n", target], cwd=REPOSITORY)


def run_ours(folder: Path, line: str, *more: str) -> None:
    """A line with our command, without a shell: its words, and the files of `<` and `>`."""
    streams = {"<": ("stdin", "r"), ">": ("stdout", "w")}
    words, arguments = iter(shlex.split(line)[1:]), []
    with chdir(folder), ExitStack() as files, pytest.MonkeyPatch.context() as patch:
        for word in words:
            if word in streams:
                stream, mode = streams[word]
                patch.setattr(sys, stream, files.enter_context(open(next(words), mode, encoding="utf-8")))
            else:
                arguments.append(word)
        assert main([*arguments, *more]) == 0, line


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Iterator[Path]:
    """A user's folder after the README's commands on text of their own; the Hub is one on this machine."""
    path = tmp_path_factory.mktemp("readme")
    (path / "configs").symlink_to(REPOSITORY / "configs")
    (path / "scripts").symlink_to(REPOSITORY / "scripts")
    (path / "my.en").write_text("A man sleeps.\nTwo dogs play.\n" * 20, encoding="utf-8")
    (path / "my.de").write_text("Ein Mann schläft.\nZwei Hunde spielen.\n" * 20, encoding="utf-8")
    with HubServer(path / "xet") as hub:
        hub.tokens = {"hf_ofUser": ("user", True)}
        client = HubClient(hub.url, path / "home", HF_HUB_DISABLE_XET="1")
        for line in commands():
            if line.startswith(".venv/bin/vanilla-transformer ") and " plot " not in line:
                user = "hf_ofUser" if " user/name" in line else None
                client(run_ours, path, line, *(SHORT_TRAINING if " train " in line else []), as_user=user)
        client.close()
        yield path


def test_pictures_are_asked_for_as_the_command_takes_it():
    """What it draws, tests/cli/test_plot.py looks at."""
    lines = [shlex.split(line)[1:] for line in commands() if " plot " in line]
    assert [_parser().parse_args(line).picture for line in lines] == ["attention", "curves"]


def test_the_extra_that_it_installs_exists():
    (line,) = (line for line in commands() if "/bin/pip " in line)
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"][
        "optional-dependencies"
    ]
    assert re.findall(r"\.\[(\w+)\]", line)[0] in extras


def test_own_text_is_translated_line_by_line(folder: Path):
    assert (folder / "translated.de").read_text(encoding="utf-8").count("\n") == 40


def test_the_python_lines_run_one_after_the_other_on_the_trained_model(folder: Path):
    printed = run([sys.executable, "-c", "\n".join(blocks("python"))], cwd=folder).splitlines()
    assert printed[0].startswith("[")
    assert printed[1].startswith("[[{'translation_text': ")
    assert printed[-1].startswith("trainable params: ")


def test_what_was_pulled_is_what_was_pushed(folder: Path):
    def files(path: Path) -> dict[str, bytes]:
        found = {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}
        assert found.pop("README.md")  # in which the push puts the model's id
        return found

    assert files(folder / "models/my") == files(folder / "runs/my/model")


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["accelerate", "torchrun"])
def test_launchers(folder: Path, launcher: str):
    (line,) = (line for line in commands() if line.startswith(f"{launcher} "))
    line = line.replace(launcher, f"{sys.prefix}/bin/{launcher}", 1)
    run(f"{line} {shlex.join(SHORT_TRAINING)} training.output_dir=runs/{launcher}", cwd=folder)
    assert (folder / "runs" / launcher / "model" / "README.md").is_file()


def test_every_file_that_it_names_exists():
    for name in re.findall(r"`((?:configs|scripts|vanilla_transformer)/[\w/.*]+)`", README):
        assert list(REPOSITORY.glob(name)), name


def test_a_newcomer_decides_within_a_screen():
    assert README.index("\n---\n") < 3000
