# SPDX-License-Identifier: Apache-2.0
import pytest
from transformers import AutoModelForSeq2SeqLM, MarianMTModel

from tests.exporting.node_modules import write_node_modules
from tests.exporting.test_web import write_empty_graphs
from tests.families import FAMILIES
from vanilla_transformer.cli import main


def test_to_marian(model_folder, tmp_path, capsys):
    output = tmp_path / "new" / "marian"
    assert main(["export", str(model_folder), str(output), "--to", "marian"]) == 0
    assert capsys.readouterr().out == f"marian: {output}\n"
    assert isinstance(AutoModelForSeq2SeqLM.from_pretrained(output), MarianMTModel)


def test_an_export_that_cannot_be_is_one_line(model_folder, tmp_path, capsys):
    FAMILIES[1].model().save_pretrained(tmp_path / "rnn")
    (tmp_path / "rnn" / "tokenizer.json").write_bytes((model_folder / "tokenizer.json").read_bytes())
    assert main(["export", str(tmp_path / "rnn"), str(tmp_path / "out"), "--to", "marian"]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "model_type='rnn_seq2seq': MarianMT is for Transformers" in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("changes", [{"norm_position": "pre"}, {"position_embedding": "learned"}], ids=str)
def test_a_model_that_no_page_can_have_is_one_line_before_npm_is_asked(model_folder, tmp_path, capsys, changes):
    FAMILIES[0].model(**changes).save_pretrained(tmp_path / "other")
    (tmp_path / "other" / "tokenizer.json").write_bytes((model_folder / "tokenizer.json").read_bytes())
    arguments = ["export", str(tmp_path / "other"), str(tmp_path / "out"), "--to", "web", "--library", "nowhere"]
    assert main(arguments) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    [(name, value)] = changes.items()
    assert f"{name}={value!r}: MarianMT can have only" in error
    assert not (tmp_path / "out").exists()


def test_a_page_without_npm_is_one_line(model_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["export", str(model_folder), str(tmp_path / "out"), "--to", "web"]) == 1
    assert "npm is not installed: install Node.js" in capsys.readouterr().err.strip().splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_to_web_says_how_to_see_the_page(model_folder, tmp_path, capsys, monkeypatch):
    output = tmp_path / "the page"
    monkeypatch.setattr("vanilla_transformer.exporting.web.write_onnx", write_empty_graphs)
    library = write_node_modules(tmp_path / "node_modules")
    assert main(["export", str(model_folder), str(output), "--to", "web", "--library", str(library)]) == 0
    assert f"python -m http.server --bind 127.0.0.1 --directory '{output}' 8000" in capsys.readouterr().out
    assert (output / "index.html").is_file()


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["{tmp}/nowhere", "{tmp}/out", "--to", "marian"], 1, "does not exist"),
        (["{model}", "{model}", "--to", "marian"], 1, "exists and is not empty; choose another folder"),
        (["{model}", "{tmp}/out", "--to", "fairseq"], 2, "invalid choice: 'fairseq'"),
        (["{model}", "{tmp}/out"], 2, "--to"),
        (["{model}", "{tmp}/out", "--to", "onnx", "--library", "there"], 2, "--library there is for --to web"),
        (["{model}", "{tmp}/out", "--to", "web", "--library", "{tmp}/no"], 1, "package.json is missing; `npm install"),
        (["{model}", "{tmp}/out", "--to", "marian", "--quantization", "int8"], 2, "loads MarianMT in float32 alone"),
    ],
)
def test_invalid_exports(model_folder, tmp_path, capsys, arguments, status, said):
    arguments = [argument.format(model=model_folder, tmp=tmp_path) for argument in arguments]
    try:
        found = main(["export", *arguments])
    except SystemExit as error:
        found = error.code
    assert found == status
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
