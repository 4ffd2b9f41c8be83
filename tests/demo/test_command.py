# SPDX-License-Identifier: Apache-2.0
import sys

import pytest

from vanilla_transformer.demo.command import NEEDED, main


@pytest.mark.parametrize("name", NEEDED)
def test_a_missing_extra_is_one_line_that_says_what_to_install(capsys, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    assert main(["model"]) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err == f"demo: error: demo needs {name}: pip install 'vanilla-transformer[demo]'\n"


def test_a_folder_that_is_no_model_is_one_line(capsys, tmp_path):
    assert main([str(tmp_path)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("demo: error: ")
    assert str(tmp_path) in line


def test_a_space_is_written_instead_of_serving(capsys, tmp_path, transformer_folder):
    assert main([transformer_folder, "--write-space", str(tmp_path / "space")]) == 0
    assert str(tmp_path / "space") in capsys.readouterr().out
    assert (tmp_path / "space" / "app.py").is_file()
