# SPDX-License-Identifier: Apache-2.0
"""Whole runs of both models on the stand-in for an accelerator."""

from itertools import pairwise

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.devices.mps_operators import lack_on_mps
from tests.devices.stand_in import WAIT, StandIn, stand_in
from vanilla_transformer.inference.translator import Translator

RNN = {"model_type": "rnn_seq2seq", "embedding_size": 8, "hidden_size": 8, "num_layers": 2}


@pytest.fixture(params=["vanilla_transformer", "rnn_seq2seq"])
def run_of_a_model(request, tiny_run, monkeypatch):
    monkeypatch.setattr("vanilla_transformer.training.export.sustained_flops", lambda *_: 1e9)  # large products
    if request.param == "rnn_seq2seq":
        values = yaml.safe_load(tiny_run.config.read_text("utf-8"))
        values["model"], values["training"]["attention"] = RNN | {"dropout": 0.1}, "eager"
        tiny_run.config.write_text(yaml.safe_dump(values), encoding="utf-8")
    return tiny_run


def check_operators(device: StandIn, *some: str) -> None:
    """MPS has every operator that the device computed, among which there are `some`, and no float64."""
    names = {operator.name().removeprefix("aten::").removesuffix(".default") for operator in device.operators}
    assert names.issuperset(some)
    assert [lack for name in sorted(names) if (lack := lack_on_mps(name))] == []
    assert not device.float64


def test_a_run_on_an_accelerator_trains_validates_resumes_and_translates_as_on_a_cpu(run_of_a_model):
    run = run_of_a_model
    # A CPU draws dropout by another kernel.
    options = [*run.validation(), "training.validation_beams=2", "model.dropout=0.0"]
    on_cpu = run.train(*options, "training.max_updates=4", f"training.output_dir={run.folder / 'cpu'}")
    with stand_in() as device:
        run.train(*options, "training.max_updates=2")
        resumed = run.train(*options, "training.max_updates=4")
        assert all(parameter.is_meta for parameter in resumed.state.model.parameters())
        translations = Translator.from_pretrained(run.output_dir / "model", device="meta").translate(["a b c", "h g"])
    assert resumed.state.progress.updates == on_cpu.state.progress.updates == 4
    file = "model/model.safetensors"
    expected = load_file(on_cpu.output_dir / file)
    torch.testing.assert_close(load_file(run.output_dir / file), expected, rtol=1e-3, atol=1e-4)
    assert translations == Translator.from_pretrained(on_cpu.output_dir / "model", device="cpu").translate(
        ["a b c", "h g"]
    )
    check_operators(device, "embedding", "addmm", "topk")


def test_the_table_of_mps_tells_what_it_lacks():
    assert lack_on_mps("logspace") == "logspace (it calls logspace.out)"
    assert lack_on_mps("_fused_adagrad_") == "_fused_adagrad_"
    assert lack_on_mps("linalg_eigh") == "linalg_eigh"


def test_an_update_waits_at_most_once_for_the_device_and_not_before_its_step(run_of_a_model):
    options = ["training.max_updates=5", "training.checkpoint_every=1000", "training.log_every=1000"]
    options += ["optimizer.name=muon"]
    with stand_in() as device:
        run_of_a_model.train(*options)
    check_operators(device, "bernoulli_.float", "baddbmm")
    steps = [index for index, event in enumerate(device.history) if event == "aten._fused_adam_"]
    assert len(steps) == 5
    for last, step in pairwise(steps[1:]):  # the first updates make the table of sinusoids
        events = device.history[last:step]
        forward = events.index("aten.embedding")
        before_the_step = [event for event in events[forward:] if event.startswith(WAIT)]
        waits = [event for event in events if event.startswith(WAIT)]
        assert not before_the_step, before_the_step
        assert len(waits) <= 1, waits
