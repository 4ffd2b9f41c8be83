# SPDX-License-Identifier: Apache-2.0
"""Where a run computes, and in which precision."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import (
    DistributedDataParallelKwargs,
    ProjectConfiguration,
    broadcast_object_list,
    patch_environment,
    set_seed,
)
from torch.nn.parallel import DistributedDataParallel

from vanilla_transformer.distributed.fsdp import LaunchOptions
from vanilla_transformer.distributed.processes import process_state
from vanilla_transformer.training.configuration import TrainingConfig

LAUNCH_OPTIONS: LaunchOptions = {
    # Accelerate would compile the whole model, under other names for its weights.
    "ACCELERATE_DYNAMO_BACKEND": ({None, "no"}, "set training.compile=true instead"),
}
# The one value that torch accepts and with which cuDNN's recurrent layers are deterministic, too.
CUBLAS_WORKSPACE_CONFIG = ":16:8"


def start_accelerator(training: TrainingConfig) -> Accelerator:
    """Accelerate with the run's precision and trackers; sets the seed.

    Raises:
        ValueError: a tracker is not installed.
    """
    precision = training.mixed_precision
    if precision == "auto":  # the main process decides for all
        [precision] = broadcast_object_list(["bf16" if bfloat16_is_faster() else "no"])
    available = [str(tracker) for tracker in get_available_trackers()]
    for name in training.trackers:  # Accelerate would go on without it
        if name not in available:
            raise ValueError(
                f"training.trackers: {name!r} is unknown or not installed; there are {', '.join(available)}"
            )
    device, output_dir = process_state().device, Path(training.output_dir)
    assert device is not None
    allow_tf32(device)
    accelerator = Accelerator(
        cpu=device.type == "cpu",
        mixed_precision=precision,
        log_with=[*training.trackers] or None,
        project_config=ProjectConfiguration(project_dir=str(output_dir), logging_dir=str(output_dir / "logs")),
        step_scheduler_with_optimizer=False,
        # Gradients live in the buckets that DDP reduces: no second copy of them, and no copying.
        kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True)],
    )
    set_seed(training.seed)
    return accelerator


def seed_each_process(seed: int, accelerator: Accelerator) -> None:
    """Give every process random numbers of its own, once all have drawn the same weights: dropout should differ.

    The main process goes on with its numbers, so that a run of one process is what it was.
    """
    if not accelerator.is_main_process:
        [own_seed] = np.random.SeedSequence((seed, accelerator.process_index)).generate_state(1)
        set_seed(int(own_seed))


def settle_gradient_buckets(model: torch.nn.Module, accelerator: Accelerator) -> None:
    """A backward pass without effect, after which DDP orders the gradients in its buckets for good.

    From three processes on, the place of a gradient decides in which order it is summed. A resumed run must have that
    order from its first update on, as the uninterrupted one has.
    """
    if not isinstance(model, DistributedDataParallel):
        return
    ids = torch.ones(2, 3, dtype=torch.long, device=accelerator.device)
    with torch.random.fork_rng(devices=[accelerator.device] if accelerator.device.type == "cuda" else []):
        accelerator.backward(model(input_ids=ids, attention_mask=ids, labels=ids, skip_logits=True).loss)
    model.zero_grad()


@contextmanager
def deterministic_algorithms(requested: bool) -> Iterator[None]:
    """If requested, the same operations give the same bits on a GPU too; torch raises RuntimeError where it cannot.

    To be entered before the first operation on a GPU, which reads these variables.
    """
    if not requested:
        yield
        return
    was_requested = torch.are_deterministic_algorithms_enabled()
    with patch_environment(cublas_workspace_config=CUBLAS_WORKSPACE_CONFIG, flash_attention_deterministic="1"):
        torch.use_deterministic_algorithms(True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(was_requested)


def idle_devices(accelerator: Accelerator) -> str:
    """For the log: the devices that a run without a launcher leaves idle, and how to use them."""
    devices = torch.accelerator.device_count() if accelerator.device.type != "cpu" else 1
    if accelerator.num_processes > 1 or devices == 1:
        return ""
    return f" of {devices} (`accelerate launch` or `torchrun` uses all of them by DDP)"


def allow_tf32(device: torch.device) -> None:
    """On an NVIDIA GPU compute float32 products in TF32, as cuDNN does recurrent layers: one arithmetic for all models.

    By torch's older interface, for torch.compile raises an error once the newer, `fp32_precision`, was used. The
    environment variable NVIDIA_TF32_OVERRIDE=0 forbids TF32 to both.
    """
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True


def bfloat16_is_faster(size: int = 256, repeats: int = 5) -> bool:
    """Whether a square matrix product takes less time in bfloat16 than in float32 on this device.

    A CPU without bfloat16 instructions emulates them a hundred times slower, and no list of names tells which do. On a
    CPU the time is one thread's CPU time, which other processes on the machine do not lengthen.
    """
    device = process_state().device  # an Accelerator would fix its precision here
    assert device is not None
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    clock = time.thread_time if device.type == "cpu" else time.perf_counter
    matrices = [torch.ones(size, size, dtype=dtype, device=device) for dtype in (torch.float32, torch.bfloat16)]
    seconds: list[list[float]] = [[], []]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for _ in range(repeats):
        for matrix, times in zip(matrices, seconds, strict=True):
            start = clock()
            (matrix @ matrix)[0, 0].item()  # item() waits for the device
            times.append(clock() - start)
    torch.set_num_threads(threads)
    return min(seconds[1]) < min(seconds[0])
