# SPDX-License-Identifier: Apache-2.0
"""The quickstart on a few words; the whole of it is `make quickstart`."""

import json
from pathlib import Path

import pytest
import yaml
from accelerate.state import AcceleratorState
from huggingface_hub import ModelCard

from vanilla_transformer.cli import main

WORDS = {"cat": "K AE T", "tack": "T AE K", "act": "AE K T", "kit": "K IH T", "tick": "T IH K", "at": "AE T"}


@pytest.fixture
def config(tiny_run) -> Path:
    """The quickstart's own configuration, on words and updates that take a second."""
    AcceleratorState._reset_state(reset_partial_state=True)
    data = tiny_run.folder / "data"
    data.mkdir()
    for name in ("train", "validation"):
        (data / f"{name}.spelling").write_text("".join(f"{' '.join(word)}\n" for word in WORDS))
        (data / f"{name}.phonemes").write_text("".join(f"{phonemes}\n" for phonemes in WORDS.values()))
    (data / "test.json").write_text(json.dumps({"tic": ["T IH K"], "ta": ["T AA", "T AH"]}))
    values = yaml.safe_load((Path(__file__).parents[2] / "configs" / "quickstart.yaml").read_text())
    for name in ("train", "validation"):
        values["data"][name] = {"source": f"{data}/{name}.spelling", "target": f"{data}/{name}.phonemes"}
    values["training"] |= {"output_dir": str(tiny_run.output_dir), "max_updates": 4, "mixed_precision": "no"}
    values["training"]["trackers"] = []
    path = tiny_run.folder / "quickstart.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def test_it_ends_with_rates_answers_and_the_next_step(config, tiny_run, capsys):
    assert main(["quickstart", "--config", str(config), "kitty"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "2 words never seen in training:" in lines
    assert any(line.startswith("  word error rate") and line.endswith("%") for line in lines)
    shown = [line for line in lines if line.startswith(("  ✓", "  ✗"))]
    assert [line.split()[1] for line in shown] == ["tic", "ta"]
    assert shown[1].endswith("T AA | T AH")
    assert any(line.split()[:1] == ["kitty"] for line in lines)
    assert "vanilla-transformer train configs/small.yaml data.train.source=my.en" in lines[-1]


def test_the_card_has_the_rates(config, tiny_run):
    main(["quickstart", "--config", str(config)])
    card = ModelCard.load(tiny_run.output_dir / "model" / "README.md")
    names = {result.metric_name for result in card.data.eval_results}
    assert names >= {"word error rate", "phoneme error rate"}


def test_a_change_to_the_config(config, tiny_run):
    main(["quickstart", "--config", str(config), "--set", "training.max_updates=2", "--set", "training.seed=5"])
    results = json.loads((tiny_run.output_dir / "results.json").read_text())
    assert (results["updates"], results["config"]["training"]["seed"]) == (2, 5)


def test_a_word_that_cannot_be_spelt_stops_it_before_training(config, tiny_run, capsys):
    assert main(["quickstart", "--config", str(config), "naïve"]) == 1
    assert "cannot spell 'naïve': it has 'ï'" in capsys.readouterr().err
    assert not tiny_run.output_dir.exists()
