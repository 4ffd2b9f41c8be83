# SPDX-License-Identifier: Apache-2.0
import logging
import os
import time
from itertools import accumulate, cycle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from vanilla_transformer.training import setup
from vanilla_transformer.training.device import (
    allow_tf32,
    bfloat16_is_faster,
    deterministic_algorithms,
    idle_devices,
    seed_each_process,
)


def draws_of_process(index: int, seed: int = 1) -> list[float]:
    """Of each generator, after the same initialisation."""
    torch.manual_seed(seed)
    np.random.seed(seed)
    process = SimpleNamespace(process_index=index, is_main_process=index == 0)
    seed_each_process(seed, process)  # pyright: ignore[reportArgumentType] -- stands for an Accelerator
    return [*torch.rand(4).tolist(), np.random.random()]


def test_seed_differs_by_process_and_the_main_one_goes_on_with_the_runs():
    drawn = [draws_of_process(index) for index in range(8)] + [draws_of_process(index, seed=2) for index in range(8)]
    assert len({tuple(numbers[:4]) for numbers in drawn}) == len({numbers[4] for numbers in drawn}) == len(drawn)
    assert draws_of_process(3) == drawn[3]
    torch.manual_seed(1)
    assert drawn[0][:4] == torch.rand(4).tolist()


def test_deterministic_algorithms_are_requested_of_torch_for_the_run_alone(tiny_run, monkeypatch):
    """On a CPU they change nothing."""
    requested, set_up = [], setup.start_accelerator

    def start_accelerator(training):
        requested.append((torch.are_deterministic_algorithms_enabled(), os.environ.get("CUBLAS_WORKSPACE_CONFIG")))
        return set_up(training)

    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setattr(setup, "start_accelerator", start_accelerator)
    found = []
    for name in ("false", "true"):
        run = tiny_run.train(f"training.deterministic={name}", f"training.output_dir={tiny_run.folder / name}")
        found.append(load_file(run.output_dir / "model" / "model.safetensors"))
    assert requested == [(False, None), (True, ":16:8")]
    assert not torch.are_deterministic_algorithms_enabled()
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    assert all(torch.equal(weight, found[1][key]) for key, weight in found[0].items())


def test_deterministic_algorithms_end_with_an_error_too():
    found = []

    @deterministic_algorithms(True)
    def fail():
        found.append(torch.are_deterministic_algorithms_enabled())
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert found == [True]
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize(
    ("device", "processes", "said"), [("cuda", 1, " of 4 (`accelerate launch`"), ("cuda", 4, ""), ("cpu", 1, "")]
)
def test_a_run_on_one_of_several_gpus_says_how_to_use_all(monkeypatch, device, processes, said):
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 4)
    accelerator = SimpleNamespace(device=torch.device(device), num_processes=processes)
    assert idle_devices(accelerator)[: len(said) or None] == said  # pyright: ignore[reportArgumentType] -- as above


@pytest.fixture
def float32_precision():
    yield
    torch.backends.cuda.matmul.allow_tf32 = False


def test_float32_on_a_gpu_is_tf32_in_products_and_in_recurrent_layers(float32_precision):
    backends = torch.backends
    allow_tf32(torch.device("cpu"))
    assert not backends.cuda.matmul.allow_tf32
    allow_tf32(torch.device("cuda"))
    assert backends.cuda.matmul.fp32_precision == backends.cudnn.rnn.fp32_precision == "tf32"
    assert torch.get_float32_matmul_precision() == "high"  # torch.compile asks; it may not raise
    assert backends.mkldnn.matmul.fp32_precision == "none"  # products on the CPU stay as they are


def test_a_tracker_that_is_not_installed_is_named(tiny_run):
    with pytest.raises(
        ValueError, match=r"training\.trackers: 'wandb' is unknown or not installed; there are .*tensorboard"
    ):
        tiny_run.train("training.trackers=[wandb]")


def test_bfloat16_trains_to_about_the_same_loss(tiny_run, caplog):
    caplog.set_level(logging.INFO, logger="vanilla_transformer")
    options = [*tiny_run.validation(), "model.dropout=0.0", "training.max_updates=20"]
    from vanilla_transformer.training.validation import validate

    losses = []
    for precision in ("no", "bf16"):
        run = tiny_run.train(
            *options, f'training.mixed_precision="{precision}"', f"training.output_dir={tiny_run.folder / precision}"
        )
        assert run.state.accelerator.mixed_precision == precision
        losses.append(validate(run).loss)
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


@pytest.mark.parametrize(("float32", "bfloat16"), [(1.0, 2.0), (2.0, 1.0)])
def test_cpu_time_and_not_wall_time_decides_the_precision(monkeypatch, float32, bfloat16):
    """What else runs on the machine may make either the slower one by the clock on the wall."""
    at_work = accumulate(cycle([0.0, float32, 0.0, bfloat16]))
    monkeypatch.setattr(time, "thread_time", lambda: next(at_work))
    monkeypatch.setattr(time, "perf_counter", lambda: pytest.fail("of a CPU"))
    assert bfloat16_is_faster() == (bfloat16 < float32)
