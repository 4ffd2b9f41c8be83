# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pytest
import yaml

from tests.conftest import write_reversals
from vanilla_transformer.cli import main
from vanilla_transformer.hub.published_folder import check_folder


@pytest.fixture
def config(model_folder, tmp_path) -> Path:
    values = {
        "model": str(model_folder),
        "data": {"train": write_reversals(tmp_path, "train", 60), "validation": write_reversals(tmp_path, "test", 5)},
        "training": {
            "output_dir": str(tmp_path / "tuned"),
            "max_updates": 2,
            "max_source_tokens": 100,
            "max_target_tokens": 100,
        },
    }
    path = tmp_path / "finetune.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


@pytest.mark.parametrize("adapter", [[], ["lora={target_modules: [q_proj]}"]], ids=["all weights", "LoRA"])
def test_fine_tuned_model_translates(config, give_input, capsys, adapter):
    assert main(["finetune", str(config), *adapter]) == 0
    said = capsys.readouterr().out
    folder = config.parent / "tuned" / "model"
    assert f"finished model: {folder}" in said
    assert "validation: BLEU " in said
    give_input(b"a b c\nd\n")
    assert main(["translate", str(folder)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_the_model_card_names_base_data_and_settings(config):
    assert main(["finetune", str(config), "optimizer.learning_rate=0.02"]) == 0
    folder = config.parent / "tuned" / "model"
    assert check_folder(folder) == []
    card = (folder / "README.md").read_text("utf-8")
    assert "Fine-tuned from run." in card  # the name of the run whose model it was
    assert "train.source, train.target" in card
    assert "| optimizer.learning_rate | 0.02 |" in card
    assert "loss per token" in card
    assert str(config.parent) not in card


def test_an_average_of_its_checkpoints_has_a_model_card(config):
    assert main(["finetune", str(config), "training.checkpoint_every=1"]) == 0
    averaged = config.parent / "averaged"
    assert main(["average", str(config.parent / "tuned"), "--last", "2", "--output", str(averaged)]) == 0
    assert "Fine-tuned from run." in (averaged / "README.md").read_text("utf-8")


def test_its_curves_are_drawn_without_the_papers_schedule(config):
    logged = ["training.trackers=[tensorboard]", "training.log_every=1"]
    assert main(["finetune", str(config), *logged]) == 0
    picture = config.parent / "curves.png"
    assert main(["plot", "curves", str(config.parent / "tuned"), "--output", str(picture)]) == 0
    assert picture.is_file()


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("model=/nowhere/model", "model folder /nowhere/model does not exist"),
        ("data.train.source=nowhere.en", "corpus file nowhere.en does not exist"),
        ("training.label_smoothing_factor=0.2", "the model smooths by itself"),
        ("training.learning=1", "unknown key training.learning"),
        ("training.output_dir=/dev/null/run", "training.output_dir=/dev/null/run cannot be written"),
        ("training.max_target_tokens=3", "more than max_target_tokens=3; raise it"),
        ("lora={target_modules: [nowhere]}", "nowhere"),
        ("training.learning_rate=fast", "optimizer.learning_rate='fast'"),
        (
            "training.optim=nothing",
            "training.optim='nothing': the optimizer is AdamW, or Muon with optimizer.name=muon; leave it out",
        ),
    ],
)
def test_an_error_is_one_line(config, capsys, override, said):
    assert main(["finetune", str(config), override]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("vanilla-transformer finetune: error: ")
    assert said in lines[-1]
    assert not any("Traceback" in line for line in lines)
