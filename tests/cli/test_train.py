# SPDX-License-Identifier: Apache-2.0
import pytest
from accelerate.state import AcceleratorState
from huggingface_hub import ModelCard

from vanilla_transformer.cli import main


@pytest.fixture(autouse=True)
def fresh_accelerate():
    AcceleratorState._reset_state(reset_partial_state=True)


def test_a_run_ends_with_a_described_model(tiny_run, capsys):
    assert main(["train", str(tiny_run.config), "training.max_updates=3"]) == 0
    assert f"finished model: {tiny_run.output_dir}/model" in capsys.readouterr().out
    card = ModelCard.load(tiny_run.output_dir / "model" / "README.md")
    assert card.data.tags == ["vanilla_transformer"]
    assert "| updates | 3 |" in card.content


def test_the_card_tells_no_path_of_this_machine(tiny_run):
    main(["train", str(tiny_run.config), *tiny_run.validation()])
    assert str(tiny_run.folder) not in (tiny_run.output_dir / "model" / "README.md").read_text(encoding="utf-8")


def test_progress_shows_what_a_person_watches(tiny_run, capsys):
    main(["train", str(tiny_run.config), *tiny_run.validation(), "training.validate_every=4"])
    shown = capsys.readouterr()
    for words in ("loss ", "ppl ", "lr ", "target tokens/s", "epoch ", "updates"):
        assert words in shown.err
    assert "validation loss" in shown.out
    assert "BLEU" in shown.out
    assert "      → " in shown.out


def test_scalars_reach_tensorboard(tiny_run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert main(["train", str(tiny_run.config), *tiny_run.validation(), "training.trackers=[tensorboard]"]) == 0
    events = EventAccumulator(str(tiny_run.output_dir / "logs" / "vanilla_transformer")).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [2, 4, 6, 8]
    tags = set(events.Tags()["scalars"])
    assert tags >= {"train/perplexity", "train/learning_rate", "validation/bleu", "validation/perplexity"}


@pytest.mark.parametrize(
    ("source", "target", "said"),
    [
        (b"a\nb\nc\n", b"a\nb\n", "has 3 lines, "),
        (b"a\n\nc\n", b"a\nb\n", "first suspicious line: 2"),
        (b"", b"", "the corpus is empty"),
        (b"a\n\xe9\n", b"a\nb\n", "line 2: byte 1 is not UTF-8; convert the file, for example with iconv"),
        (b"\n \n", b"a\nb\n", "no pair is left to train on: 0 pairs kept, 2 with an empty side dropped"),
        (b"a " * 500_000 + b"\n", b"a\n", "0 pairs kept, 0 with an empty side dropped, 1 with more than 256 tokens"),
    ],
    ids=["mismatched", "shifted", "empty", "not UTF-8", "only empty lines", "a line of a megabyte"],
)
def test_bad_corpora(tiny_run, capsys, source: bytes, target: bytes, said: str):
    for side, text in (("source", source), ("target", target)):
        (tiny_run.folder / f"train.{side}").write_bytes(text)
    assert main(["train", str(tiny_run.config)]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("vanilla-transformer train: error: ")
    assert said in lines[-1]
    assert not any("Traceback" in line for line in lines)


def test_a_megabyte_on_one_line_is_dropped_and_counted(tiny_run, capsys, caplog):
    for side in ("source", "target"):
        path = tiny_run.folder / f"train.{side}"
        path.write_text("a " * 500_000 + "\n" + path.read_text(encoding="utf-8"), encoding="utf-8")
    caplog.set_level("INFO", logger="vanilla_transformer")
    assert main(["train", str(tiny_run.config), "training.max_updates=2"]) == 0
    assert "120 pairs kept, 0 with an empty side dropped, 1 with more than 256 tokens on a side dropped" in caplog.text


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("data.train.source=nowhere.en", "corpus file nowhere.en does not exist"),
        ("model.num_heads=3", "model.num_heads=3 does not divide d_model=16"),
        ("model.d_model=-16", "model.d_model=-16 must lie between 1 and 2^31"),
        ("model.d_model=2000000000", "there is no memory for the model {'d_ff': 32, 'd_model': 2000000000"),
        ("training.learning_rate=1", "unknown key training.learning_rate"),
        ("training.output_dir=/dev/null/run", "training.output_dir=/dev/null/run cannot be written"),
        ("tokenizer.vocab_size=5", "exceed tokenizer.vocab_size=5; raise it"),
    ],
)
def test_errors_before_any_work(tiny_run, capsys, override: str, said: str):
    assert main(["train", str(tiny_run.config), override]) == 1
    assert said in capsys.readouterr().err.splitlines()[-1]
    assert not (tiny_run.output_dir / "checkpoints").exists()
