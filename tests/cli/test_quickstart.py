# SPDX-License-Identifier: Apache-2.0
"""The quickstart on a few words; the whole of it is `make quickstart`."""

import io
import json
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from tests.conftest import TinyRun
from vanilla_transformer.cli import main
from vanilla_transformer.training import subprocess_run

CONFIGS = Path(__file__).parents[2] / "configs"
WORDS = {"cat": "K AE T", "tack": "T AE K", "act": "AE K T", "kit": "K IH T", "tick": "T IH K", "at": "AE T"}


def write_configs(tiny_run: TinyRun) -> list[str]:
    """The quickstart's own configurations, on words and updates that take a second; as arguments."""
    data = tiny_run.folder / "data"
    data.mkdir()
    for name in ("train", "validation"):
        (data / f"{name}.spelling").write_text("".join(f"{' '.join(word)}\n" for word in WORDS), encoding="utf-8")
        (data / f"{name}.phonemes").write_text(
            "".join(f"{phonemes}\n" for phonemes in WORDS.values()), encoding="utf-8"
        )
    (data / "test.json").write_text(json.dumps({"tic": ["T IH K"], "ta": ["T AA", "T AH"]}), encoding="utf-8")
    values = yaml.safe_load((CONFIGS / "quickstart.yaml").read_text(encoding="utf-8"))
    for name in ("train", "validation"):
        values["data"][name] = {"source": f"{data}/{name}.spelling", "target": f"{data}/{name}.phonemes"}
    values["training"] |= {"output_dir": str(tiny_run.output_dir), "max_updates": 4, "mixed_precision": "no"}
    values["training"]["trackers"] = []
    (tiny_run.folder / "quickstart.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    rnn = yaml.safe_load((CONFIGS / "rnn" / "quickstart.yaml").read_text(encoding="utf-8")) | {
        "extends": "quickstart.yaml"
    }
    (tiny_run.folder / "rnn.yaml").write_text(yaml.safe_dump(rnn), encoding="utf-8")
    return ["--config", f"{tiny_run.folder}/quickstart.yaml", "--rnn-config", f"{tiny_run.folder}/rnn.yaml"]


@pytest.fixture
def configs(tiny_run) -> list[str]:
    return write_configs(tiny_run)


@dataclass
class Finished:
    """The output and the runs of a quickstart with one word, fewer updates and another seed."""

    arguments: list[str]
    lines: list[str]
    runs: dict[str, Path]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    run = TinyRun(tmp_path_factory.mktemp("quickstart"))
    changes = [*("--set", "training.max_updates=2"), *("--set", "training.seed=5")]
    arguments = ["quickstart", *write_configs(run), *changes]
    with redirect_stdout(io.StringIO()) as out:
        assert main([*arguments, "kitty"]) == 0
    return Finished(
        arguments, out.getvalue().splitlines(), {"Transformer": run.output_dir, "RNN": run.output_dir / "rnn"}
    )


def test_output_compares_both_models_and_ends_with_the_next_step(finished):
    lines = finished.lines
    assert "2 words never seen in training:" in lines
    table = {line[2:22].strip(): line[22:].split() for line in lines if line.startswith("  ")}
    assert table[""] == ["Transformer", "RNN"]
    assert all(cell.endswith("%") for row in ("word error rate", "phoneme error rate") for cell in table[row])
    assert table["updates"] == ["2", "2"]
    assert len(table["parameters"]) == len(table["target tokens/s"]) == len(table["minutes of training"]) == 2
    assert any("(paired bootstrap: p = " in line for line in lines)
    words = [line.split() for line in lines if line.startswith(("  tic", "  ta "))]
    assert [word[0] for word in words] == ["tic", "ta"]
    assert all(sum(cell in "✓✗" for cell in word) == 2 for word in words)
    assert words[1][-5:] == ["T", "AA", "|", "T", "AH"]
    assert any(line.split()[:1] == ["kitty"] for line in lines)
    assert "vanilla-transformer train small data.train.source=my.en" in lines[-1]


def test_model_cards_have_the_scores_of_both_models(finished, monkeypatch, capsys):
    """Called again, without words."""
    monkeypatch.setattr(subprocess_run, "run_in_subprocess", lambda *_: None)  # both have been trained
    assert main(finished.arguments) == 0
    (difference,) = (line.strip() for line in capsys.readouterr().out.splitlines() if "(paired bootstrap" in line)
    runs = finished.runs
    parameters = {
        name: json.loads((run / "results.json").read_text(encoding="utf-8"))["parameters"] for name, run in runs.items()
    }
    for name, run in runs.items():
        card = ModelCard.load(run / "model" / "README.md")
        names = {result.metric_name for result in card.data.eval_results or []}
        assert names >= {"word error rate", "phoneme error rate"}
        assert f"\n{difference}." in card.text
        for model in runs:
            mark = " (this model)" if model == name else ""
            assert f"\n| {model}{mark} | {parameters[model]:,} | 2 |" in card.text
        assert '"a t t e n t i o n"' in card.text
        assert (run / "model" / "LICENSE").is_file()


def test_override_applies_to_both_configs(finished):
    for run in finished.runs.values():
        results = json.loads((run / "results.json").read_text(encoding="utf-8"))
        assert (results["updates"], results["config"]["training"]["seed"]) == (2, 5)


def test_runs_that_differ_in_data_are_refused(configs, tiny_run, capsys):
    with (tiny_run.folder / "rnn.yaml").open("a", encoding="utf-8") as file:
        file.write("\ndata: {max_length: 5}\n")
    assert main(["quickstart", *configs]) == 1
    assert "the runs of Transformer and RNN differ in data.max_length (64 and 5)" in capsys.readouterr().err


def test_unspellable_word_fails_before_training(configs, tiny_run, capsys):
    assert main(["quickstart", *configs, "naïve"]) == 1
    assert "cannot spell 'naïve': it has 'ï'" in capsys.readouterr().err
    assert not tiny_run.output_dir.exists()
