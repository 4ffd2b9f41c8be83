# SPDX-License-Identifier: Apache-2.0
"""The command `plot`: a file for each picture, and one line for each error."""

import gc
import re
import subprocess
import sys

import pytest
from PIL import Image

from vanilla_transformer.cli import main
from vanilla_transformer.cli.plot import _formula


def test_positions_have_the_printed_size(tmp_path, capsys):
    output = tmp_path / "new" / "positions.png"
    assert main(["plot", "positions", "--output", str(output)]) == 0
    assert gc.isenabled()  # for whoever calls it from Python
    width, height = Image.open(output).size
    assert capsys.readouterr().out == f"{output}: {width:,} x {height:,} pixels\n"


def test_an_svg_has_the_printed_size(tmp_path, capsys):
    output = tmp_path / "positions.svg"
    assert main(["plot", "positions", "--output", str(output)]) == 0
    width, height = re.findall(r'(?:width|height)="([\d.]+)pt"', output.read_text("utf-8"))
    assert capsys.readouterr().out == f"{output}: {float(width):.0f} x {float(height):.0f} points\n"


@pytest.mark.parametrize("options", [[], ["--average", "--kind", "cross"], ["--style", "paper", "--head", "1"]])
def test_attention_prints_translation_and_file(model_folder, tmp_path, capsys, options):
    output = tmp_path / "attention.svg"
    assert main(["plot", "attention", str(model_folder), "a b c", "--output", str(output), *options]) == 0
    translation, written = capsys.readouterr().out.splitlines()
    assert translation.startswith("translation: ")
    assert written.startswith(f"{output}: ")
    assert output.read_text("utf-8").startswith("<?xml")


def test_interactive_page_is_one_file(model_folder, tmp_path):
    output = tmp_path / "attention.html"
    command = ["plot", "attention", str(model_folder), "a b c", "--interactive", "head", "--output", str(output)]
    assert main(command) == 0
    assert output.read_text("utf-8").startswith("<!DOCTYPE html>")


def test_curves_of_a_run(tiny_run, tmp_path, capsys):
    tiny_run.train("training.trackers=[tensorboard]")
    output = tmp_path / "curves.png"
    assert main(["plot", "curves", str(tiny_run.output_dir), "--output", str(output)]) == 0
    assert output.is_file()


def test_equation_3_is_drawn_for_the_papers_schedule_alone(tiny_run):
    history = {"train/loss": ([2, 4], [1.0, 0.5])}
    for schedule, formula in (("inverse_sqrt", [1, 2, 3, 4]), ("linear", None)):
        folder = tiny_run.folder / schedule
        tiny_run.train("training.max_updates=1", f"training.output_dir={folder}", f"optimizer.schedule={schedule}")
        drawn = _formula(str(folder), history)
        assert (drawn and drawn[0]) == formula


@pytest.mark.parametrize(
    ("command", "status", "said"),
    [
        (["positions", "--output", "a.bmp"], 1, "'.bmp' must be one of .png, .svg"),
        (["positions", "--sentence", " "], 1, "the sentence is empty"),
        (["positions", "--classic", "--sentence", "a"], 2, "leave out --sentence"),
        (["attention", "MODEL", ""], 1, "the sentence is empty"),
        (["attention", "MODEL", "a " * 2000], 1, "2,001 tokens, more than the limit of 100"),
        (["attention", "MODEL", "a b", "--layer", "7"], 1, "7 must be between 1 and 1"),
        (["attention", "MODEL", "a b", "--head", "7"], 1, "7 must be between 1 and 2"),
        (["attention", "MODEL", "a b", "--word", "a"], 2, "--style paper"),
        (["attention", "MODEL", "a b", "--interactive", "head", "--layer", "1"], 2, "leave out --layer"),
        (["curves", "nowhere"], 1, "run nowhere does not exist"),
    ],
)
def test_error_is_one_line(model_folder, tmp_path, monkeypatch, capsys, command, status, said):
    monkeypatch.chdir(tmp_path)
    assert main(["plot", *(str(model_folder) if part == "MODEL" else part for part in command)]) == status
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("vanilla-transformer plot: error: ")
    assert said in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("missing", "command", "extra"),
    [
        ("matplotlib", ["positions"], "visualization"),
        ("bertviz", ["attention", "model", "a", "--interactive", "head"], "interactive"),
        ("tensorboard", ["curves", "run"], "training"),
    ],
)
def test_missing_extra_is_named(monkeypatch, capsys, missing, command, extra):
    monkeypatch.setitem(sys.modules, missing, None)
    assert main(["plot", *command]) == 1
    assert f"pip install 'vanilla-transformer[{extra}]'" in capsys.readouterr().err


def test_plotting_libraries_are_imported_only_by_plot(model_folder):
    code = (
        "import sys, vanilla_transformer; from vanilla_transformer.cli import main\n"
        f"main(['translate', {str(model_folder)!r}])\n"
        "print([name for name in ('matplotlib', 'bertviz', 'IPython') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], input="a b\n", capture_output=True, encoding="utf-8", check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"
