# SPDX-License-Identifier: Apache-2.0
"""Resident memory of one system, in a process of its own: within one process systems cannot be told apart."""

import ctypes
import gc
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from vanilla_transformer.benchmark.random_model import random_model
from vanilla_transformer.benchmark.systems import Batch, Decoding, build_system
from vanilla_transformer.configuration_vanilla_transformer import VanillaTransformerConfig

# The fork server imports them once, in this order (see `check_import_order`), for all processes.
PRELOADED = ["ctranslate2", "vanilla_transformer.benchmark.memory"]


def resident_bytes(which: Literal["VmRSS", "VmHWM"] = "VmRSS") -> int:
    """Resident memory of this process: now, or its peak ("VmHWM") since `reset_peak`. Linux only."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(which))


def reset_peak() -> None:
    """Begin to count the peak of `resident_bytes` anew."""
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def peak_memory(
    names: list[str], config: VanillaTransformerConfig, folder: Path, batch: Batch, decoding: Decoding, max_length: int
) -> dict[str, int] | None:
    """Peak bytes of each system while it decodes on the CPU, beyond the imported libraries; `None` but on Linux.

    They include the system's weights, and the model that it was made from if it still needs it.

    Args:
        names: keys of `skip_reasons`.
        folder, max_length: as for `build_system`.
    """
    if sys.platform != "linux":
        return None
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    found = {}
    for name in names:
        with ProcessPoolExecutor(1, context) as process:
            system = (name, partial(random_model, config), folder, max_length)
            found[name] = process.submit(_measure, torch.get_num_threads(), batch, decoding, *system).result()
    return found


def _measure(threads: int, batch: Batch, decoding: Decoding, *system: Any) -> int:
    """`system`: arguments of `build_system`."""
    before = resident_bytes()
    torch.set_num_threads(threads)
    with build_system(*system).prepare([batch], decoding) as decode:
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # returns memory that the C library would keep after building
        reset_peak()
        decode(1)
    return resident_bytes("VmHWM") - before
