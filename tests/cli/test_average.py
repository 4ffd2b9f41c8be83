# SPDX-License-Identifier: Apache-2.0
import json
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
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


def test_a_damaged_checkpoint_is_named(tiny_run, tmp_path, capsys):
    tiny_run.train("training.checkpoint_every=2")
    weights = list_checkpoints(tiny_run.output_dir / "checkpoints")[-2] / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert main(["average", str(tiny_run.output_dir), "--last", "3", "--output", str(tmp_path / "averaged")]) == 1
    assert "update-00000006 is damaged: model.safetensors has" in capsys.readouterr().err


def test_model_folders_by_name(model_folder, tmp_path, capsys):
    output = tmp_path / "averaged"
    assert main(["average", str(model_folder), str(model_folder), "--output", str(output)]) == 0
    assert "It has no model card" in capsys.readouterr().out
    before = AutoModelForSeq2SeqLM.from_pretrained(model_folder).state_dict()
    for name, weight in AutoModelForSeq2SeqLM.from_pretrained(output).state_dict().items():
        assert torch.equal(weight, before[name])


def test_the_mean_of_a_finished_run_has_a_card_without_the_scores_of_another_mean(tiny_run, tmp_path, capsys):
    tiny_run.train("training.checkpoint_every=2", *tiny_run.validation())
    results_file = tiny_run.output_dir / "results.json"
    results = json.loads(results_file.read_text(encoding="utf-8"))
    results["scores"] = [{"data": "test", "metric": "chrF", "value": 30.0, "signature": "s"}]
    results_file.write_text(json.dumps(results), encoding="utf-8")
    assert main(["average", str(tiny_run.output_dir), "--last", "2", "--output", str(tmp_path / "mean-of-2")]) == 0
    card = ModelCard.load(tmp_path / "mean-of-2" / "README.md")
    assert card.text.strip().startswith("# mean-of-2\n")
    assert "| training.average_checkpoints | 2 |" in card.text
    assert {result.metric_name for result in card.data.eval_results or []} == {"perplexity per token", "BLEU"}
    assert "no model card" not in capsys.readouterr().out


def test_without_results_of_these_checkpoints_it_says_what_is_missing(tiny_run, tmp_path, capsys):
    tiny_run.train()
    results_file = tiny_run.output_dir / "results.json"

    def average(name: str) -> Path:
        main(["average", str(tiny_run.output_dir), "--last", "1", "--output", str(tmp_path / name)])
        return tmp_path / name

    results = json.loads(results_file.read_text(encoding="utf-8")) | {"updates": 4}  # and then the run went on
    results_file.write_text(json.dumps(results), encoding="utf-8")
    outputs = [average("stale")]
    results_file.unlink()
    outputs.append(average("unfinished"))
    said = capsys.readouterr().out
    for output in outputs:
        assert not (output / "README.md").exists()
        assert f"Write {output / 'README.md'} before you publish it." in said
        assert (output / "LICENSE").is_file()


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["{run}", "--last", "9"], 1, "has 2 checkpoints, --last asks for 9"),
        (["{run}", "{run}", "--last", "1"], 2, "--last takes one run's folder, 2 were given"),
        (["{run}/nowhere"], 1, "does not exist"),
    ],
)
def test_invalid_averages(model_folder, tmp_path, capsys, arguments: list[str], status: int, said: str):
    arguments = [argument.format(run=model_folder.parent) for argument in arguments]
    assert main(["average", *arguments, "--output", str(tmp_path / "out")]) == status
    assert not (tmp_path / "out").exists()
    assert said in capsys.readouterr().err


def test_nothing_is_overwritten(model_folder, capsys):
    assert main(["average", str(model_folder), "--output", str(model_folder)]) == 1
    assert "exists and is not empty; choose another folder" in capsys.readouterr().err
