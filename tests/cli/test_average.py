# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from vanilla_transformer.cli import main
from vanilla_transformer.training.averaging import average_checkpoints
from vanilla_transformer.training.checkpoint import list_checkpoints


def test_the_last_checkpoints_of_a_run(tiny_run, tmp_path, capsys):
    tiny_run.train("training.checkpoint_every=2")
    output = tmp_path / "averaged"
    assert main(["average", str(tiny_run.output_dir), "--last", "3", "--output", str(output)]) == 0
    assert "mean of 3 checkpoints (update-00000004 … update-00000008)" in capsys.readouterr().out
    expected = average_checkpoints(list_checkpoints(tiny_run.output_dir / "checkpoints")[-3:]).state_dict()
    for name, weight in AutoModelForSeq2SeqLM.from_pretrained(output).state_dict().items():
        assert torch.equal(weight, expected[name])
    assert AutoTokenizer.from_pretrained(output)("a")["input_ids"][-1] == 2


def test_model_folders_by_name(model_folder, tmp_path):
    output = tmp_path / "averaged"
    assert main(["average", str(model_folder), str(model_folder), "--output", str(output)]) == 0
    before = AutoModelForSeq2SeqLM.from_pretrained(model_folder).state_dict()
    for name, weight in AutoModelForSeq2SeqLM.from_pretrained(output).state_dict().items():
        assert torch.equal(weight, before[name])


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["{run}", "--last", "9"], 1, "has 2 checkpoints, --last asks for 9"),
        (["{run}", "{run}", "--last", "1"], 2, "--last takes one run's folder, 2 were given"),
        (["{run}/nowhere"], 1, "does not exist"),
    ],
)
def test_what_cannot_be_averaged(model_folder, tmp_path, capsys, arguments: list[str], status: int, said: str):
    arguments = [argument.format(run=model_folder.parent) for argument in arguments]
    assert main(["average", *arguments, "--output", str(tmp_path / "out")]) == status
    assert not (tmp_path / "out").exists()
    assert said in capsys.readouterr().err


def test_nothing_is_overwritten(model_folder, capsys):
    assert main(["average", str(model_folder), "--output", str(model_folder)]) == 1
    assert "exists and is not empty; choose another folder" in capsys.readouterr().err
