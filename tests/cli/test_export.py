# SPDX-License-Identifier: Apache-2.0
import pytest
from transformers import AutoModelForSeq2SeqLM, MarianMTModel

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


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["{tmp}/nowhere", "{tmp}/out", "--to", "marian"], 1, "does not exist"),
        (["{model}", "{model}", "--to", "marian"], 1, "exists and is not empty; choose another folder"),
        (["{model}", "{tmp}/out", "--to", "fairseq"], 2, "invalid choice: 'fairseq'"),
        (["{model}", "{tmp}/out"], 2, "--to"),
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
