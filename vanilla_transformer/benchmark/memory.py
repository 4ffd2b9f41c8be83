# SPDX-License-Identifier: Apache-2.0
"""Resident memory of one system, in a process of its own: within one process systems cannot be told apart."""

import ctypes
import gc
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

from vanilla_transformer.benchmark.configuration import DecodingConfig
from vanilla_transformer.benchmark.systems import CTRANSLATE2, Batch, build_system
from vanilla_transformer.inference.model_folder import load_model_folder

MODEL = "model"  # the model folder within the folder of the systems
# The fork server imports them once, in this order (see `check_import_order`), for all processes.
PRELOADED = ["ctranslate2", "vanilla_transformer.benchmark.memory"]


def peak_bytes() -> int:
    """This process' peak of resident memory since `reset_peak`. Linux only."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def reset_peak() -> int:
    """Begin to count `peak_bytes` anew; returns where it begins, the resident memory of now."""
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    return peak_bytes()


def peak_of(work: Callable[[], Any]) -> int:
    """This process' peak of resident memory during some work. Linux only."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # returns memory that the C library would keep
    reset_peak()
    work()
    return peak_bytes()


def in_own_process(function: Callable[..., Any], *arguments: Any, imports_anew: bool = False) -> Any:
    """The function's result in a new process, with as many threads as here.

    Args:
        imports_anew: import everything there, as a command does; else the libraries are imported. Linux only.
    """
    context = multiprocessing.get_context("spawn" if imports_anew else "forkserver")
    context.set_forkserver_preload(PRELOADED)
    with ProcessPoolExecutor(1, context, torch.set_num_threads, (torch.get_num_threads(),)) as process:
        return process.submit(function, *arguments).result()


def decoding_memory(name: str, folder: Path, max_length: int, batch: Batch, decoding: DecodingConfig) -> int:
    """Peak bytes of a system while it decodes on the CPU, beyond the imported libraries.

    They include the system's weights, and the model that it was made from if it still needs it.

    Args:
        folder: as for `build_system`; its `MODEL` is the model folder that the systems in torch open.
        name, max_length: as for `build_system`.
    """
    before = reset_peak()
    model = None if name in CTRANSLATE2.values() else load_model_folder(folder / MODEL)
    system = build_system(name, model, folder, max_length)
    del model  # unless the system needs it
    with system([batch], decoding) as decode:
        return peak_of(lambda: decode(1)) - before
