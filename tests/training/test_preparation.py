# SPDX-License-Identifier: Apache-2.0
import logging
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from vanilla_transformer.training.checkpoint import list_checkpoints


def test_what_a_person_should_know_is_logged(tiny_run, caplog):
    caplog.set_level(logging.INFO, logger="vanilla_transformer")
    run = tiny_run.train("data.max_length=6")
    text = caplog.text
    long = sum(1 for line in Path(run.config.data.train.source).read_text().splitlines() if len(line.split()) + 1 > 6)
    assert f"{120 - long} pairs kept, 0 with an empty side dropped, {long} with more than 6 tokens" in text
    assert f"{len(run.order)} an epoch" in text
    assert f"{run.order.padding_share():.1%} of their positions padding" in text
    assert f"{run.bare_model().num_parameters():,} parameters" in text


def test_the_tokenizer_of_the_run_is_used_again(tiny_run):
    tiny_run.train("training.max_updates=2")
    file = tiny_run.output_dir / "tokenizer" / "tokenizer.json"
    before = file.stat().st_mtime_ns
    tiny_run.train("training.max_updates=3")
    assert file.stat().st_mtime_ns == before


def test_a_tokenizer_can_be_brought_along(tiny_run, model_folder):
    run = tiny_run.train(f"tokenizer.path={model_folder}")
    assert run.tokenizer.get_vocab()["<pad>"] == 0


def test_a_tokenizer_of_a_failed_attempt_is_not_used_again(tiny_run):
    good = {side: (tiny_run.folder / f"train.{side}").read_text() for side in ("source", "target")}
    for side in good:
        (tiny_run.folder / f"train.{side}").write_text("x " * 300 + "\n")
    with pytest.raises(ValueError, match="no pair is left"):
        tiny_run.train()
    for side, text in good.items():
        (tiny_run.folder / f"train.{side}").write_text(text)
    assert "x" not in tiny_run.train().tokenizer.get_vocab()


def test_a_tokenizer_that_does_not_end_its_texts(tiny_run, tmp_path):
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "<unk>": 1, "<pad>": 2, "<s>": 3, "</s>": 4}, unk_token="<unk>"))
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(tmp_path / "endless")
    with pytest.raises(ValueError, match=r"tokenizer\.path=.*endless: it does not end a text with </s>"):
        tiny_run.train(f"tokenizer.path={tmp_path / 'endless'}")
    del names["bos_token"]
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(tmp_path / "startless")
    with pytest.raises(ValueError, match="it has no bos_token"):
        tiny_run.train(f"tokenizer.path={tmp_path / 'startless'}")


def test_a_test_corpus_that_is_not_there_stops_the_run_before_it_starts(tiny_run):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.en does not exist"):
        tiny_run.train("data.test.source=nowhere.en", "data.test.target=nowhere.de")
    assert list_checkpoints(tiny_run.output_dir / "checkpoints") == []


def test_an_absent_tracker_is_named(tiny_run):
    with pytest.raises(
        ValueError, match=r"training\.trackers: 'wandb' is unknown or not installed; there are .*tensorboard"
    ):
        tiny_run.train("training.trackers=[wandb]")


def test_without_a_corpus_there_is_nothing_to_do(tiny_run):
    with pytest.raises(ValueError, match=r"data\.train is missing"):
        tiny_run.train("data.train=null")
    assert not tiny_run.output_dir.exists()


def test_a_folder_that_cannot_be_written(tiny_run):
    (tiny_run.folder / "file").write_text("in the way")
    with pytest.raises(PermissionError, match=r"training\.output_dir=.*file/run cannot be written"):
        tiny_run.train(f"training.output_dir={tiny_run.folder / 'file' / 'run'}")


def test_a_pair_beyond_the_budget_is_an_error_before_the_first_update(tiny_run):
    with pytest.raises(ValueError, match=r"more than max_source_tokens=3; raise it, or lower data\.max_length"):
        tiny_run.train("training.max_source_tokens=3")
    assert list_checkpoints(tiny_run.output_dir / "checkpoints") == []


def test_bfloat16_trains_to_about_the_same_loss(tiny_run, caplog):
    caplog.set_level(logging.INFO, logger="vanilla_transformer")
    options = [*tiny_run.validation(), "model.dropout=0.0", "training.max_updates=20"]
    from vanilla_transformer.training.validation import validate

    losses = []
    for precision in ("no", "bf16"):
        run = tiny_run.train(
            *options, f'training.mixed_precision="{precision}"', f"training.output_dir={tiny_run.folder / precision}"
        )
        assert run.accelerator.mixed_precision == precision
        losses.append(validate(run).loss)
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
