# SPDX-License-Identifier: Apache-2.0
"""A device's sustained FLOPS, for the paper's estimate of training cost (section 6.1, Table 2)."""

import torch
from torch.utils.benchmark import Timer

DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def sustained_flops(device: torch.device, mixed_precision: str) -> float:
    """Floating-point operations per second of one device in a product of large matrices, at the run's precision.

    The median of about half a second after a warm-up, on a CPU with the current number of threads. Processes that share
    a CPU should measure at the same time, as they trained at the same time.

    Args:
        mixed_precision: Accelerate's: "no", "bf16" or "fp16".
    """
    size = 1024 if device.type == "cpu" else 4096  # large enough to be bound by computing, not by memory
    generator = torch.Generator(device).manual_seed(0)  # does not advance the run's generator
    matrices = {
        name: torch.rand(size, size, generator=generator, device=device).to(DTYPES[mixed_precision])
        for name in ("left", "right")
    }
    timer = Timer("left @ right", globals=matrices, num_threads=torch.get_num_threads())
    return 2 * size**3 / timer.blocked_autorange().median
