# SPDX-License-Identifier: Apache-2.0
"""Where a run computes, and in which precision."""

import time
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import ProjectConfiguration, broadcast_object_list, set_seed

from vanilla_transformer.distributed.processes import process_state
from vanilla_transformer.training.configuration import TrainingConfig


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
    )
    set_seed(training.seed)
    return accelerator


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
