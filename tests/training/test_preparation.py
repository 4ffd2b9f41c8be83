# SPDX-License-Identifier: Apache-2.0
import logging
from pathlib import Path

import pytest


def test_what_a_person_should_know_is_logged(tiny_run, caplog):
    caplog.set_level(logging.INFO, logger="vanilla_transformer")
    run = tiny_run.train("data.max_length=6")
    text = caplog.text
    long = sum(1 for line in Path(run.config.data.train.source).read_text().splitlines() if len(line.split()) + 1 > 6)
    assert f"{120 - long} pairs kept, 0 with an empty side dropped, {long} with more than 6 tokens" in text
    assert f"{len(run.order)} an epoch" in text
    assert f"{run.order.padding_share():.1%} of their positions padding" in text
    assert f"{run.bare_model().num_parameters():,} parameters" in text


def test_an_absent_tracker_is_named(tiny_run):
    with pytest.raises(
        ValueError, match=r"training\.trackers: 'wandb' is unknown or not installed; there are .*tensorboard"
    ):
        tiny_run.train("training.trackers=[wandb]")


def test_without_a_corpus_there_is_nothing_to_do(tiny_run):
    with pytest.raises(ValueError, match=r"data\.train is missing"):
        tiny_run.train("data.train=null")
    assert not tiny_run.output_dir.exists()


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


def test_the_number_of_processes_stays(tiny_run):
    run = tiny_run.train("training.max_updates=3")
    run.progress.processes = 2
    run.checkpoints.save(run.progress)
    with pytest.raises(ValueError, match="was trained by 2 processes, and now there are 1"):
        tiny_run.train()


def test_the_corpus_stays(tiny_run):
    tiny_run.train("training.max_updates=3")
    for side in ("source", "target"):
        path = tiny_run.folder / f"train.{side}"
        path.write_text(path.read_text() + "a\n")
    with pytest.raises(ValueError, match=r"was trained on 120 pairs, and now data\.train has 121"):
        tiny_run.train()
