# SPDX-License-Identifier: Apache-2.0
"""`translate` with prefixes, terms, sentences and large files, on a model of letters."""

import pytest

from vanilla_transformer.cli import main
from vanilla_transformer.inference.terms import LexicalConstraints
from vanilla_transformer.inference.translator import Translator


def error_of(arguments: list[str], status: int, capsys) -> str:
    assert main(["translate", *arguments]) == status
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("vanilla-transformer translate: error: ")
    return message


def test_options_are_those_of_the_translator(model_folder, tmp_path, give_input, capsysbinary):
    prefix, terms = tmp_path / "prefix", tmp_path / "terms"
    prefix.write_text("a b\n\n", encoding="utf-8")
    terms.write_text("c\td\n", encoding="utf-8")
    lines = ["a c\te f", "c c a"]
    give_input("\n".join(lines).encode())
    options = ["--prefix", str(prefix), "--constraints", "--terminology", str(terms), "--beams", "4", "--quiet"]
    assert main(["translate", str(model_folder), *options]) == 0
    found = capsysbinary.readouterr().out.decode().splitlines()
    constraints = LexicalConstraints(in_lines=True, terminology=[("c", "d")])
    translator = Translator.from_pretrained(model_folder)
    assert found == translator.translate(lines, prefixes=["a b", ""], constraints=constraints, num_beams=4)
    assert found[0].startswith("a b")
    assert [line.split().count("d") for line in found] == [1, 2]


@pytest.mark.parametrize(
    ("options", "status", "said"),
    [
        (["--input", "FILE"], 2, "--input and --output go together"),
        (["--shard-lines", "4"], 2, "--shard-lines needs --input"),
        (["--prefix", "FILE"], 1, "prefixes has 2 rows, and there are more lines"),
        (["--prefix", "none"], 1, "none"),
        (["--terminology", "FILE"], 1, "line 1 must be 'source term <tab> target term'; it is 'a'"),
        (["--constraints", "--beams", "1"], 1, "num_beams=1 must be at least 2 where terms are given"),
        (["--split-sentences", "en", "--constraints"], 1, "split_sentences: prefixes, terms in lines"),
    ],
)
def test_bad_input_is_one_line(model_folder, tmp_path, give_input, capsys, options, status, said):
    file = tmp_path / "file"
    file.write_text("a\nb\n", encoding="utf-8")
    give_input(b"a\tx\nb\nc\n")
    options = [str(file) if option == "FILE" else option for option in options]
    assert said in error_of([str(model_folder), "--quiet", *options], status, capsys)
