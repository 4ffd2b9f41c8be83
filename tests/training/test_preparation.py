# SPDX-License-Identifier: Apache-2.0
import logging
from pathlib import Path

import pytest

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
        losses.append(validate(run).loss)
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
