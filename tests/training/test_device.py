# SPDX-License-Identifier: Apache-2.0
import logging
import time
from itertools import accumulate, cycle

import pytest
import torch

from vanilla_transformer.training.device import allow_tf32, bfloat16_is_faster


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
