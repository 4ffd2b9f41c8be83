# SPDX-License-Identifier: Apache-2.0
import pytest
import yaml

from vanilla_transformer.cli import main
from vanilla_transformer.comparison import speed

MODELS = {
    "Transformer": {"model_type": "vanilla_transformer", "d_model": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2},
    "GRU": {"model_type": "rnn_seq2seq", "embedding_size": 8, "hidden_size": 9, "tie_word_embeddings": True},
}


@pytest.fixture
def config(tmp_path, monkeypatch) -> str:
    monkeypatch.setattr(speed, "check_parameters", lambda where, parameters: None)  # too small to be equal
    section = {"models": MODELS, "vocab_size": 20, "lengths": [3], "batch_tokens": 6, "repeats": 2, "updates": 1}
    path = tmp_path / "compare.yaml"
    path.write_text(yaml.safe_dump({"output_dir": str(tmp_path / "out"), "speed": section}), encoding="utf-8")
    return str(path)


def test_verdicts_and_report_are_printed(config, tmp_path, capsys):
    assert main(["compare", config]) == 0
    output = capsys.readouterr()
    lines = output.out.splitlines()
    assert [line.split(":")[0] for line in lines[:3]] == [
        "Faster in training on cpu",
        "Better at long range",
        "Superior quality",
    ]
    assert lines[3] == f"report: {tmp_path}/out/report.md"
    assert "speed 1/1: length 3" in output.err
    assert "GRU" in (tmp_path / "out" / "report.md").read_text(encoding="utf-8")


def test_override_replaces_the_files_value(config, tmp_path, capsys):
    assert main(["compare", config, f"output_dir={tmp_path}/elsewhere", "speed.repeats=1"]) == 0
    assert (tmp_path / "elsewhere" / "results.json").exists()


def test_override_without_a_file_uses_the_default_config(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["compare", "speed=null", "long_range=null", "quality=null"]) == 1
    assert "configs/compare.yaml compares nothing" in capsys.readouterr().err


def test_error_is_one_line(config, capsys):
    assert main(["compare", config, "speed.models.GRU.cell=gro"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "speed.models.GRU: model.cell='gro': expected 'tanh' or 'gru' or 'lstm'" in error
