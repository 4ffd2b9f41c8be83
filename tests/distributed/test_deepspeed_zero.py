# SPDX-License-Identifier: Apache-2.0
"""ZeRO-2 by DeepSpeed, two processes on CPUs: what it trains, its checkpoints, and what of it is refused.

The slow tests need the extra `zero`, which `dev` is without: once DeepSpeed is installed, every process of every run
imports it, for seconds.
"""

from pathlib import Path

import pytest
import torch
from accelerate.utils import is_deepspeed_available
from accelerate.utils.launch import prepare_deepspeed_cmd_env
from safetensors.torch import load_file

from tests.conftest import TinyRun
from tests.distributed import world_sizes
from tests.distributed.launching import TRAIN, launch, start_together, train_here, weights
from tests.distributed.test_accelerate_configs import launch_arguments
from tests.distributed.test_resuming import SMALL_BATCHES, contents
from vanilla_transformer.distributed import deepspeed_zero
from vanilla_transformer.distributed.deepspeed_zero import ZeroOptimizer, zero_requested
from vanilla_transformer.training import loop
from vanilla_transformer.training.configuration import load_run_config

ZERO2 = {"ACCELERATE_USE_DEEPSPEED": "true"}
POISONED = 2  # the call of `backward` whose gradient is not finite

needs_deepspeed = pytest.mark.skipif(not is_deepspeed_available(), reason="the extra `zero` is not installed")


def ask(monkeypatch: pytest.MonkeyPatch, *options: str) -> None:
    """What `accelerate launch` by the file tells its processes."""
    arguments = launch_arguments("deepspeed_zero2", *options)
    arguments.deepspeed_fields_from_accelerate_config = ""  # which the launcher adds
    _, environment = prepare_deepspeed_cmd_env(arguments)
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)


def test_accelerate_config_requests_zero(monkeypatch):
    assert not zero_requested("no")
    monkeypatch.setattr(deepspeed_zero, "is_deepspeed_available", lambda: True)
    ask(monkeypatch)
    assert zero_requested("bf16")


@pytest.mark.parametrize(
    ("options", "remedy"),
    [
        (["--zero_stage", "3"], "zero_stage='3' .*set it to 2; to shard weights too, use FSDP2"),
        (["--offload_optimizer_device", "cpu"], "offload_optimizer_device='cpu' .*set it to none"),
        (["--gradient_accumulation_steps", "4"], "set training.gradient_accumulation_steps instead"),
        (["--gradient_clipping", "1.0"], "set optimizer.max_grad_norm instead"),
    ],
)
def test_unsupported_options_of_zero_are_refused_before_a_folder_is_made(tiny_run, monkeypatch, options, remedy):
    ask(monkeypatch, *options)
    with pytest.raises(ValueError, match=remedy) as caught:
        tiny_run.train()
    assert "\n" not in str(caught.value)
    assert not tiny_run.output_dir.exists()


def test_fp16_and_a_missing_deepspeed_are_refused(tiny_run, monkeypatch):
    ask(monkeypatch)
    with pytest.raises(ValueError, match="training.mixed_precision='fp16' is not for ZeRO-2"):
        tiny_run.train("training.mixed_precision=fp16")
    monkeypatch.setattr(deepspeed_zero, "is_deepspeed_available", lambda: False)
    with pytest.raises(ValueError, match=r"not installed: pip install 'vanilla-transformer\[zero\]'"):
        tiny_run.train()


@pytest.mark.slow
@needs_deepspeed
def test_two_processes_train_as_one_that_accumulates(tmp_path, monkeypatch):
    """Clipped, in parts of which each ends an epoch differently."""
    way = world_sizes.Way(2, sharded=True)
    monkeypatch.setattr(world_sizes, "FSDP2", ZERO2)
    trained = world_sizes.compare([way], tmp_path, "Transformer", torch.float32, updates=10)
    alone = trained[world_sizes.ALONE]
    assert alone.losses[-1] < alone.losses[0] - 0.1
    assert trained[way].losses_differ(alone) < 1e-5
    assert trained[way].weights_differ(alone) < 1e-5


@pytest.mark.slow
@needs_deepspeed
def test_an_interrupted_run_ends_as_the_uninterrupted_one_and_one_process_goes_on(tiny_run: TinyRun):
    """Dropout is on, and validation comes in between."""
    overrides = [*SMALL_BATCHES, *tiny_run.validation(), "training.validate_every=4", "optimizer.max_grad_norm=0.1"]
    overrides.append("training.gradient_accumulation_steps=2")
    whole, parts = tiny_run.folder / "whole", tiny_run.folder / "parts"
    for folder, updates in ((whole, 8), (parts, 5), (parts, 8)):
        settings = [f"training.output_dir={folder}", f"training.max_updates={updates}"]
        start_together(train_here, 2, tiny_run.config, [*overrides, *settings], **ZERO2)
    expected = contents(whole / "checkpoints" / "update-00000008")
    found = contents(parts / "checkpoints" / "update-00000008")
    assert found.keys() == expected.keys()
    assert [name for name in expected if found[name] != expected[name]] == []
    names = weights(whole / "model").keys()
    moments = load_file(whole / "checkpoints" / "update-00000008" / "optimizer.safetensors")
    run = tiny_run.train(*overrides, f"training.output_dir={whole}", "training.max_updates=9")
    assert run.state.progress.updates == 9
    assert weights(whole / "model").keys() == names
    alone = load_file(whole / "checkpoints" / "update-00000009" / "optimizer.safetensors")
    assert {name: tensor.shape for name, tensor in alone.items()} == {name: t.shape for name, t in moments.items()}


def poisoned_here(config: Path, overrides: list[str]) -> None:
    """A run with one update whose gradient is not finite in the last process."""
    step, calls = loop.backward, []

    def backward(state, micro_batches, training):
        calls.append(len(micro_batches))
        accelerator = state.accelerator
        assert isinstance(state.optimizer, ZeroOptimizer) == (accelerator.num_processes > 1)
        if len(calls) != POISONED or accelerator.process_index != accelerator.num_processes - 1:
            return step(state, micro_batches, training)
        hook = next(state.bare_model().parameters()).register_hook(lambda gradient: gradient * torch.nan)
        result = step(state, micro_batches, training)
        hook.remove()
        return result

    loop.backward = backward
    run = loop.train(load_run_config(config, overrides))
    assert run.state.progress.skipped_updates == 1
    if isinstance(run.state.optimizer, ZeroOptimizer):  # really sharded
        [moments] = run.state.optimizer.adam.state.values()
        assert moments["exp_avg"].numel() < 0.6 * run.state.bare_model().num_parameters()


@pytest.mark.slow
@needs_deepspeed
def test_a_skipped_update_leaves_no_gradient(tiny_run: TinyRun):
    overrides = [*world_sizes.OPTIONS, "training.max_updates=4"]
    found = []
    for processes in (1, 2):
        folder = tiny_run.folder / str(processes)
        settings = [f"training.output_dir={folder}", f"training.gradient_accumulation_steps={4 // processes}"]
        environment = ZERO2 if processes > 1 else {}
        start_together(poisoned_here, processes, tiny_run.config, [*overrides, *settings], **environment)
        found.append(weights(folder / "model"))
    for name, weight in found[0].items():
        torch.testing.assert_close(found[1][name], weight, rtol=0, atol=1e-5)


@pytest.mark.slow
@needs_deepspeed
def test_accelerate_launches_it_on_cpus(tiny_run: TinyRun):
    launch([TRAIN, str(tiny_run.config), "training.mixed_precision=bf16"], config="deepspeed_zero2")
    assert '"devices": 2' in (tiny_run.output_dir / "results.json").read_text(encoding="utf-8")
