# SPDX-License-Identifier: Apache-2.0
"""Two processes on this machine, over gloo, as `torchrun` starts them."""

import dataclasses
import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch._dynamo.utils import counters

from tests.conftest import write_reversals
from tests.distributed.launching import FSDP2, TRAIN, launch, start_together, train_here, weights
from vanilla_transformer.training import model as training_model
from vanilla_transformer.training import update_queue
from vanilla_transformer.training.configuration import load_run_config
from vanilla_transformer.training.gradients import backward
from vanilla_transformer.training.loop import fit, train, updates
from vanilla_transformer.training.setup import set_up
from vanilla_transformer.training.validation import validate

pytestmark = pytest.mark.slow


def test_two_processes_train_as_one_that_accumulates(tiny_run):
    """An epoch is one update either way, so the gradients are of the same pairs."""
    options = [str(tiny_run.config), "model.dropout=0.0", "training.max_epochs=5", "training.max_updates=5"]
    options += [f"training.max_{side}_tokens=280" for side in ("source", "target")]
    alone, together = tiny_run.folder / "alone", tiny_run.folder / "together"
    launch([TRAIN, *options, f"training.output_dir={alone}", "training.gradient_accumulation_steps=100"], 1)
    launch([TRAIN, *options, f"training.output_dir={together}", "training.gradient_accumulation_steps=50"], 2)
    results = [json.loads((folder / "results.json").read_text(encoding="utf-8")) for folder in (alone, together)]
    assert results[0]["target_tokens"] == results[1]["target_tokens"]
    assert results[1]["hardware"].startswith("2 x ")
    expected = weights(alone / "model")
    for name, weight in weights(together / "model").items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("processes", [2, 3])
def test_several_processes_score_as_one(model_folder, tmp_path, processes):
    """13 sentences, which they cannot share evenly."""
    files = write_reversals(tmp_path, "test", 13)
    arguments = ["-m", "vanilla_transformer.cli", "evaluate", str(model_folder), "--json"]
    arguments += ["--source", files["source"], "--reference", files["target"]]
    assert json.loads(launch(arguments, processes)) == json.loads(launch(arguments, 1))


def validate_here(config: Path, overrides: list[str]) -> None:
    run = set_up(load_run_config(config, overrides))
    found = dataclasses.asdict(validate(run))
    (config.parent / f"{run.state.accelerator.num_processes}-{run.state.accelerator.process_index}.json").write_text(
        json.dumps(found), encoding="utf-8"
    )


@pytest.mark.parametrize("environment", [{}, FSDP2], ids=["ddp", "fsdp2"])
def test_several_processes_validate_as_one(tiny_run, environment):
    """13 pairs from one checkpoint: the same sentences and scores in each process, their mean loss up to rounding."""
    corpus = [f"data.validation.{side}={file}" for side, file in write_reversals(tiny_run.folder, "held", 13).items()]
    overrides = [*corpus, "training.max_updates=100", "training.checkpoint_every=100"]
    start_together(train_here, 1, tiny_run.config, overrides)  # this process would keep the folder for itself
    for processes in (1, 2, 3):
        start_together(validate_here, processes, tiny_run.config, overrides, **environment)
    [alone] = [json.loads(path.read_text(encoding="utf-8")) for path in tiny_run.folder.glob("1-*.json")]
    others = [json.loads(path.read_text(encoding="utf-8")) for path in tiny_run.folder.glob("[23]-*.json")]
    assert len(others) == 2 + 3
    for found in others:
        for name in ("loss", "perplexity"):
            assert found.pop(name) == pytest.approx(alone[name], rel=1e-5)
        assert found == {name: alone[name] for name in found}


def train_by_own_clock(config: Path, overrides: list[str]) -> None:
    """Train with a clock that runs twice as fast in the second process; write the rate of each update."""
    run = set_up(load_run_config(config, overrides))
    process, now, rates, step = run.state.accelerator.process_index, [0.0], [], update_queue.step

    def timed_step(state, skipped, previous_skipped):
        now[0] += 1.0 + process
        step(state, skipped, previous_skipped)
        rates.append(state.schedule.get_last_lr()[0])

    update_queue.time = SimpleNamespace(perf_counter=lambda: now[0])
    update_queue.step = timed_step
    fit(run)
    (config.parent / f"rates-{process}.json").write_text(json.dumps(rates), encoding="utf-8")


def test_processes_with_different_clocks_have_the_same_rates(tiny_run):
    options = ["training.max_updates=null", "training.max_minutes=1", "optimizer.schedule=linear"]
    start_together(train_by_own_clock, 2, tiny_run.config, [*options, "optimizer.warmup_steps=3"])
    rates, others = (json.loads(path.read_text("utf-8")) for path in sorted(tiny_run.folder.glob("rates-*.json")))
    assert rates == others
    assert len(rates) == pytest.approx(30, abs=3)  # the faster clock ends the run
    assert rates[-1] < 0.15 * max(rates)


def first_update_here(config: Path, overrides: list[str]) -> None:
    """The weights and the random numbers before the first update; the storages of its gradients."""
    run = set_up(load_run_config(config, overrides))
    process, model = run.state.accelerator.process_index, run.state.bare_model()
    before = {"numbers": torch.rand(4)} | {name: weight.clone() for name, weight in model.named_parameters()}
    torch.save(before, config.parent / f"before-{process}.pt")
    backward(run.state, next(updates(run)), run.config.training)
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    storages = {gradient.untyped_storage().data_ptr() for gradient in gradients}
    (config.parent / f"storages-{process}.json").write_text(
        json.dumps([len(gradients), len(storages)]), encoding="utf-8"
    )


def test_processes_begin_with_equal_weights_and_draw_different_dropout(tiny_run):
    """And their gradients live in the one bucket that DDP reduces."""
    start_together(first_update_here, 2, tiny_run.config, [])
    first, second = (torch.load(tiny_run.folder / f"before-{process}.pt") for process in (0, 1))
    assert not torch.equal(first.pop("numbers"), second.pop("numbers"))
    assert all(torch.equal(weight, second[name]) for name, weight in first.items())
    for process in (0, 1):
        gradients, storages = json.loads((tiny_run.folder / f"storages-{process}.json").read_text("utf-8"))
        assert storages == 1 < gradients


def train_compiled_here(config: Path, overrides: list[str]) -> None:
    training_model.compile_layers = partial(training_model.compile_layers, backend="eager")
    train(load_run_config(config, overrides))
    assert counters["stats"]["unique_graphs"] > 0
    assert not counters["graph_break"]


@pytest.mark.parametrize("environment", [{}, FSDP2], ids=["ddp", "fsdp2"])
def test_several_processes_train_compiled_layers_as_plain_ones(tiny_run, environment):
    """Validation and a checkpoint come in between."""
    options = ["model.dropout=0.0", *tiny_run.validation(), "training.validate_every=3"]
    found = []
    for name, function, more in (("plain", train_here, "false"), ("compiled", train_compiled_here, "true")):
        settings = [f"training.output_dir={tiny_run.folder / name}", f"training.compile={more}"]
        start_together(function, 2, tiny_run.config, [*options, *settings], **environment)
        found.append(weights(tiny_run.folder / name / "model"))
    assert found[0].keys() == found[1].keys()
    for name, weight in found[1].items():
        torch.testing.assert_close(weight, found[0][name], rtol=1e-4, atol=1e-6)
