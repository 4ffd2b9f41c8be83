# SPDX-License-Identifier: Apache-2.0
"""The loop as a whole, on runs of a second."""

import os
import signal

import pytest
import torch
from safetensors.torch import load_file

from vanilla_transformer.training import loop
from vanilla_transformer.training.checkpoint import list_checkpoints


def weights(run) -> dict[str, torch.Tensor]:
    return {name: weight.clone() for name, weight in run.state.bare_model().state_dict().items()}


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], **tolerance) -> None:
    for name, weight in one.items():
        torch.testing.assert_close(weight, other[name], **tolerance or {"rtol": 0, "atol": 0})


RNN = "model={model_type: rnn_seq2seq, embedding_size: 16, hidden_size: 12, dropout: 0.1, tie_word_embeddings: true}"


@pytest.mark.parametrize(
    "options", [[], [RNN, "training.attention=eager"], ["optimizer.name=muon"]], ids=["transformer", "rnn", "muon"]
)
def test_a_resumed_run_equals_an_uninterrupted_one(tiny_run, options):
    """To the bit, dropout included, across the end of an epoch."""
    whole = tiny_run.train(*options, "training.max_updates=13", f"training.output_dir={tiny_run.folder / 'whole'}")
    assert whole.state.progress.epoch >= 1
    for updates in (3, 9, 13):  # the same command with another end
        resumed = tiny_run.train(*options, f"training.max_updates={updates}")
    assert resumed.state.progress.updates == 13
    assert resumed.state.progress.target_tokens == whole.state.progress.target_tokens
    assert_equal(weights(resumed), weights(whole))
    finished = [load_file(folder / "model" / "model.safetensors") for folder in (resumed.output_dir, whole.output_dir)]
    assert_equal(*finished)  # the mean of the same checkpoints


@pytest.mark.parametrize("schedule", ["inverse_sqrt", "linear", "cosine"])
def test_a_stopped_run_goes_on_with_the_same_rates(tiny_run, monkeypatch, schedule):
    """To the bit: an update on its way has the rate that a settled one has."""
    options = ["training.max_updates=null", "training.max_epochs=2", "training.checkpoint_every=1000"]
    options += [f"optimizer.schedule={schedule}", "optimizer.warmup_steps=3"]
    whole = tiny_run.train(*options, f"training.output_dir={tiny_run.folder / 'whole'}")
    backward = loop.backward
    for stop in (2, 9):
        begun = iter(range(1, 1000))
        monkeypatch.setattr(
            loop,
            "backward",
            lambda *a, begun=begun, stop=stop: (
                (os.kill(os.getpid(), signal.SIGTERM) if next(begun) == stop else None) or backward(*a)
            ),
        )
        with pytest.raises(SystemExit):
            tiny_run.train(*options)
    monkeypatch.setattr(loop, "backward", backward)
    resumed = tiny_run.train(*options)
    assert resumed.state.progress.updates == whole.state.progress.updates > 11
    assert (resumed.state.schedule.get_last_lr() == [0.0]) == (schedule != "inverse_sqrt")
    assert_equal(weights(resumed), weights(whole))


def test_a_stop_request_ends_with_a_checkpoint(tiny_run, monkeypatch):
    step, begun = loop.backward, iter(range(1, 1000))

    def interrupted(state, *rest):
        if next(begun) == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(state, *rest)

    monkeypatch.setattr(loop, "backward", interrupted)
    with pytest.raises(SystemExit) as caught:
        tiny_run.train("training.checkpoint_every=1000")
    assert caught.value.code == loop.EXIT_STATUS_OF_A_STOPPED_RUN
    checkpoints = list_checkpoints(tiny_run.output_dir / "checkpoints")
    assert [path.name for path in checkpoints] == ["update-00000005"]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_an_epoch_has_every_pair_once(tiny_run, monkeypatch):
    seen = []
    step = loop.backward
    monkeypatch.setattr(
        loop, "backward", lambda state, parts, training: seen.extend(parts) or step(state, parts, training)
    )
    run = tiny_run.train("training.max_updates=null", "training.max_epochs=2")
    sentences = sorted(tuple(i for i in row.tolist() if i) for batch in seen for row in batch["input_ids"])
    assert sentences == sorted(tuple(row["input_ids"]) for row in run.corpora.train for _ in range(2))
    assert (run.state.progress.epoch, run.state.progress.batches) == (2, 0)


def test_accumulated_micro_batches_are_one_update(tiny_run):
    """Half the budget and twice the micro-batches: the epoch's pairs in one update either way, so the same weights."""
    options = ["model.dropout=0.0", "training.max_epochs=3"]
    whole = tiny_run.train(
        *options,
        "training.max_source_tokens=10000",
        "training.max_target_tokens=10000",
        f"training.output_dir={tiny_run.folder / 'whole'}",
    )
    parts = tiny_run.train(*options, "training.gradient_accumulation_steps=100")
    assert whole.state.progress.updates == parts.state.progress.updates == 3
    assert len(parts.sampler) > 5
    assert_equal(weights(parts), weights(whole), rtol=1e-3, atol=1e-5)  # Adam's eps is 1e-9: it magnifies rounding


def test_the_schedule_steps_once_an_update(tiny_run):
    run = tiny_run.train("training.gradient_accumulation_steps=3", "training.max_updates=6", "optimizer.warmup_steps=4")
    assert run.state.progress.updates == 6
    assert run.state.schedule.get_last_lr()[0] == pytest.approx(16**-0.5 * 7**-0.5)  # the rate of the seventh to come


def test_minutes_end_a_run(tiny_run):
    run = tiny_run.train("training.max_updates=100000", "training.max_minutes=0.001")
    assert 0 < run.state.progress.updates < 100_000
    assert run.state.progress.seconds >= 0.06


def test_clipping_bounds_the_first_step(tiny_run, monkeypatch):
    norms = []
    step = torch.optim.Adam.step

    def record(self, *arguments):
        gradients = [p.grad for group in self.param_groups for p in group["params"]]
        norms.append(torch.linalg.vector_norm(torch.stack([g.norm() for g in gradients])).item())
        return step(self, *arguments)

    monkeypatch.setattr(torch.optim.Adam, "step", record)
    tiny_run.train("training.max_updates=3", "optimizer.max_grad_norm=0.01")
    assert max(norms) == pytest.approx(0.01, rel=1e-3)


def test_a_stream_trains(tiny_run):
    run = tiny_run.train(
        "data.train.streaming=true", "data.max_length=20", "training.max_updates=null", "training.max_epochs=2"
    )
    assert run.state.progress.epoch == 2
    assert run.state.progress.updates > 2
    assert run.epochs() == 2.0


def test_a_stream_resumes(tiny_run):
    options = ["data.train.streaming=true", "data.max_length=20"]
    whole = tiny_run.train(*options, "training.max_updates=9", f"training.output_dir={tiny_run.folder / 'whole'}")
    for updates in (5, 9):
        resumed = tiny_run.train(*options, f"training.max_updates={updates}")
    assert_equal(weights(resumed), weights(whole))


def test_a_damaged_checkpoint_is_left_out(tiny_run, caplog):
    """And the run ends as if nothing had happened."""
    whole = tiny_run.train(f"training.output_dir={tiny_run.folder / 'whole'}")
    tiny_run.train()
    latest = list_checkpoints(tiny_run.output_dir / "checkpoints")[-1]
    file = latest / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    resumed = tiny_run.train()
    assert f"checkpoint {latest} is damaged and left out: model.safetensors has" in caplog.text
    assert resumed.state.progress.updates == 8
    assert_equal(weights(resumed), weights(whole))
