# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pytest

from vanilla_transformer.cli import main
from vanilla_transformer.data.corpus import read_lines
from vanilla_transformer.inference.translator import Translator


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    texts = {"source": "a b\nc\n", "target": "d c\na\n", "alignments": "0-1 1-0\n0-0\n"}
    for name, text in texts.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    return {name: str(tmp_path / name) for name in texts}


def make(model_folder: Path, files: dict[str, str], output: Path) -> int:
    return main(
        ["shortlist", str(model_folder), *(f"--{name}={path}" for name, path in files.items()), f"--output={output}"]
    )


@pytest.mark.parametrize("name", ["lex", "lex.gz"])
def test_the_table_serves_translate(model_folder, files, tmp_path, give_input, capsysbinary, name):
    table = tmp_path / name
    assert make(model_folder, files, table) == 0
    assert sorted(read_lines(table)) == ["a c 1", "c a 1", "d b 1"]
    assert capsysbinary.readouterr().out.decode() == f"{table}: 3 pairs of tokens\n"
    give_input(b"a b\nh e\n")
    assert main(["translate", str(model_folder), "--shortlist", str(table), "--quiet"]) == 0
    expected = Translator.from_pretrained(model_folder, shortlist=table).translate(["a b", "h e"])
    assert capsysbinary.readouterr().out.decode().splitlines() == expected


def test_alignments_without_a_link_are_refused(model_folder, files, tmp_path, capsys):
    Path(files["alignments"]).write_text("\n\n", encoding="utf-8")
    assert make(model_folder, files, tmp_path / "lex") == 1
    assert "has no link" in capsys.readouterr().err


def test_a_shortlist_of_an_ensemble_is_refused(model_folder, give_input, capsys):
    give_input(b"a\n")
    assert main(["translate", str(model_folder), str(model_folder), "--shortlist", "lex"]) == 2
    assert "--shortlist is for one model" in capsys.readouterr().err
