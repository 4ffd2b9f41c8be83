# SPDX-License-Identifier: Apache-2.0
import logging
import shutil
from itertools import islice
from pathlib import Path

import pytest

from vanilla_transformer.training import loop, setup


def test_setup_logs_model_device_and_data(tiny_run, caplog):
    caplog.set_level(logging.INFO, logger="vanilla_transformer")
    run = tiny_run.train("data.max_length=6")
    text = caplog.text
    long = sum(
        1
        for line in Path(run.config.data.train.source).read_text(encoding="utf-8").splitlines()
        if len(line.split()) + 1 > 6
    )
    assert f"{120 - long} pairs kept, 0 with an empty side dropped, {long} with more than 6 tokens" in text
    assert f"{len(run.sampler)} an epoch" in text
    assert f"{run.sampler.padding_share():.1%} of their positions padding" in text
    assert f"{run.state.bare_model().num_parameters():,} parameters" in text


def test_a_missing_corpus_is_an_error(tiny_run):
    with pytest.raises(ValueError, match=r"data\.train is missing"):
        tiny_run.train("data.train=null")
    assert not tiny_run.output_dir.exists()


SMALL_BATCHES = ("training.max_source_tokens=40", "training.max_target_tokens=40")


def save_as_if_of_two_processes(run) -> None:
    run.state.progress.processes = 2
    run.checkpoints.save()
    run.checkpoints.wait()


def test_another_number_of_processes_goes_on_in_the_epoch(tiny_run, caplog):
    """Two that took 3 batches each leave a single one all but 6."""
    caplog.set_level(logging.INFO, logger="vanilla_transformer")
    save_as_if_of_two_processes(tiny_run.train(*SMALL_BATCHES, "training.max_updates=3"))
    run = tiny_run.train(*SMALL_BATCHES, "training.max_updates=null", "training.max_epochs=1")
    assert run.state.progress.updates == 3 + len(run.sampler) - 6
    assert (run.state.progress.epoch, run.state.progress.processes) == (1, 1)
    assert "processes: 2 before, 1 now" in caplog.text
    assert "batches in an update (2 before, 1 now)" in caplog.text


def test_the_number_of_processes_before_is_known_after_another_stop(tiny_run):
    save_as_if_of_two_processes(tiny_run.train(*SMALL_BATCHES, "training.max_updates=3"))
    tiny_run.train(*SMALL_BATCHES, "training.max_updates=4")
    run = tiny_run.train(*SMALL_BATCHES, "training.max_updates=5")
    assert (run.state.progress.begun_epoch, run.state.progress.batches) == (0, 2)
    run.sampler.set_epoch(0)
    taken = sum(map(len, islice(run.sampler, 2)))
    assert run.epochs() * 120 == pytest.approx(run.state.progress.begun_pairs + taken)


def test_an_epoch_after_another_number_of_processes_is_a_whole_one(tiny_run):
    save_as_if_of_two_processes(tiny_run.train(*SMALL_BATCHES, "training.max_updates=3"))
    run = tiny_run.train(*SMALL_BATCHES, "training.max_updates=null", "training.max_epochs=2")
    assert (
        run.state.progress.updates > 3 + 2 * len(run.sampler) - 6 - 2
    )  # an epoch's number of batches may differ by one
    assert run.epochs() == 2.0


@pytest.mark.parametrize("streaming", ["false", "true"])
def test_resuming_with_a_changed_corpus_is_refused(tiny_run, streaming):
    """As many pairs of as many letters: one letter is another."""
    options = [f"data.train.streaming={streaming}", "data.max_length=20"]
    tiny_run.train("training.max_updates=3", *options)
    path = tiny_run.folder / "train.target"
    text = path.read_text(encoding="utf-8")
    path.write_text(("b" if text[0] == "a" else "a") + text[1:], encoding="utf-8")
    with pytest.raises(ValueError, match=r"train\.target has changed since .*run was trained.*SHA-256.*bring it back"):
        tiny_run.train(*options)
    path.write_text(text, encoding="utf-8")
    assert tiny_run.train(*options, "training.max_updates=4").state.progress.updates == 4


def test_a_longer_run_follows_its_new_end(tiny_run, caplog):
    """The finished run stood at a rate of 0; of 12 updates 6 are left, and the peak of d_model 16 was after 2."""
    options = ["optimizer.schedule=linear", "optimizer.warmup_steps=2"]
    tiny_run.train(*options, "training.max_updates=6")
    caplog.set_level(logging.INFO, logger="vanilla_transformer")
    tiny_run.train(*options, "training.max_updates=6")
    assert "decays to zero" not in caplog.text
    rate = (16 * 2) ** -0.5 * 6 / 10
    run = setup.set_up(tiny_run.load(*options, "training.max_updates=12"))
    line = f"the learning rate decays to zero at 12 updates; for the next update it rises from 0.00e+00 to {rate:.2e}"
    assert line in caplog.text
    assert run.state.optimizer.param_groups[0]["lr"] == pytest.approx(rate)


def test_resuming_with_another_number_of_pairs_is_refused(tiny_run):
    run = tiny_run.train("training.max_updates=3")
    run.state.progress.pairs = 121
    run.checkpoints.save()
    run.checkpoints.wait()
    with pytest.raises(ValueError, match=r"was trained on 121 pairs, and now data\.train has 120"):
        tiny_run.train()


def test_resuming_with_the_same_corpora_by_other_paths(tiny_run, tmp_path, monkeypatch):
    """A relative path, from another working directory, and a copy: the contents decide."""
    overrides = tiny_run.validation()
    tiny_run.train("training.max_updates=2", "training.checkpoint_every=1", *overrides)
    monkeypatch.chdir(tmp_path)
    names = [f"data.{corpus}.{side}" for corpus in ("train", "validation") for side in ("source", "target")]
    relative = [f"{name}=./{'.'.join(name.split('.')[1:])}" for name in names]
    assert tiny_run.train("training.max_updates=3", *relative).state.progress.updates == 3
    (tmp_path / "copy").mkdir()
    for name in names:
        file = name.removeprefix("data.")
        shutil.copy(tmp_path / file, tmp_path / "copy" / file)
    monkeypatch.chdir(tmp_path / "copy")
    bare = [f"{name}={name.removeprefix('data.')}" for name in names]
    assert tiny_run.train("training.max_updates=4", *bare).state.progress.updates == 4


@pytest.mark.parametrize("corpus", ["train", "validation"])
@pytest.mark.parametrize("how", ["changed", "elsewhere", "exchanged"])
def test_resuming_with_other_text_is_refused(tiny_run, tmp_path, corpus: str, how: str):
    overrides = tiny_run.validation()
    tiny_run.train("training.max_updates=2", "training.checkpoint_every=1", *overrides)
    source, target = (tmp_path / f"{corpus}.{side}" for side in ("source", "target"))
    text = target.read_text(encoding="utf-8")
    if how == "exchanged":
        places = {"source": target, "target": source}
    else:
        places = {"source": source, "target": target if how == "changed" else tmp_path / "other"}
        places["target"].write_text(text.replace("a", "b"), encoding="utf-8")
    kept = [override for override in overrides if corpus not in override]
    given = [*kept, *(f"data.{corpus}.{side}={path}" for side, path in places.items())]
    used = {"train": "trained", "validation": "validated"}[corpus]
    message = (
        "have changed places since .* was {} on them" if how == "exchanged" else "has changed since .* was {} on it"
    )
    with pytest.raises(ValueError, match=f"{message.format(used)}.*, and .*; bring it back as it was") as error:
        tiny_run.train("training.max_updates=3", *given)
    assert "\n" not in str(error.value)


def test_tokens_per_update_decide_the_micro_batches(tiny_run, caplog, monkeypatch):
    counts, step = [], loop.backward
    monkeypatch.setattr(
        loop, "backward", lambda state, parts, *rest: counts.append(len(parts)) or step(state, parts, *rest)
    )
    caplog.set_level("INFO", logger="vanilla_transformer")
    run = tiny_run.train("training.tokens_per_update=310", "training.max_updates=1")
    line = "training.tokens_per_update=310: 1 processes x 3 micro-batches x 100 target tokens = 300"
    assert line in caplog.text
    assert counts[0] == 3
    assert run.config.training.micro_batches(3) == 1


def test_tokens_per_update_of_less_than_a_batch_in_each_process_are_refused(tiny_run):
    with pytest.raises(ValueError, match=r"training.tokens_per_update=99 must be at least 100: one micro-batch of"):
        tiny_run.train("training.tokens_per_update=99")


def test_tokens_per_update_beside_gradient_accumulation_are_refused(tiny_run):
    with pytest.raises(ValueError, match=r"tokens_per_update=800 and training.gradient_accumulation_steps=2 both"):
        tiny_run.load("training.tokens_per_update=800", "training.gradient_accumulation_steps=2")
