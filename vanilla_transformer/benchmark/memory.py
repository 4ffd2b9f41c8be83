# SPDX-License-Identifier: Apache-2.0
"""Resident memory of one contender, in a process of its own: in one process they could not be told apart."""

import ctypes
import gc
import multiprocessing
import os
import threading
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from vanilla_transformer.benchmark.random_model import random_model
from vanilla_transformer.benchmark.systems import Batch, Decoding, make_contender
from vanilla_transformer.configuration_vanilla_transformer import VanillaTransformerConfig

STATM = Path("/proc/self/statm")  # Linux only
EVERY = 0.002  # seconds between samples
# Imported once, in this order (see `check_import_order`), by the server whose copies the processes are.
PRELOADED = ["ctranslate2", "vanilla_transformer.benchmark.memory"]


class ResidentPeak:
    """A context whose `bytes` is the most resident memory of this process within it, sampled by a thread."""

    def __init__(self):
        self.bytes = resident_bytes()
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> "ResidentPeak":
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._ends.set()
        self._thread.join()
        self.bytes = max(self.bytes, resident_bytes())

    def _sample(self) -> None:
        while not self._ends.wait(EVERY):
            self.bytes = max(self.bytes, resident_bytes())


def resident_bytes() -> int:
    """Of this process, now; Linux only."""
    return int(STATM.read_text(encoding="utf-8").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def peak_memory(
    names: list[str], config: VanillaTransformerConfig, folder: Path, batch: Batch, decoding: Decoding, longest: int
) -> dict[str, int] | None:
    """Name of each contender → bytes beyond those of the libraries, on the CPU; `None`: the system does not say.

    The weights of a contender are among them, and the model that it was made from where it still needs it.

    Args:
        names: of `names_of_contenders`.
        folder, longest: as for `make_contender`.
    """
    if not STATM.exists():
        return None
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(PRELOADED)
    found = {}
    for name in names:
        receiver, sender = processes.Pipe(duplex=False)
        arguments = (sender, torch.get_num_threads(), name, config, folder, batch, decoding, longest)
        process = processes.Process(target=_measure, args=arguments)
        process.start()
        sender.close()  # so that the end of the process ends the wait for it
        try:
            found[name] = receiver.recv()
        except EOFError as error:
            raise RuntimeError(f"measuring the memory of {name} failed; its own error stands above") from error
        finally:
            process.join()
    return found


def _measure(
    sender: Connection,
    threads: int,
    name: str,
    config: VanillaTransformerConfig,
    folder: Path,
    batch: Batch,
    decoding: Decoding,
    longest: int,
) -> None:
    before = resident_bytes()
    torch.set_num_threads(threads)
    contender = make_contender(name, lambda: random_model(config), folder, longest)  # it holds on to what it needs
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what it was made from, which the C library would keep for later
    with ResidentPeak() as peak, contender.ready([batch], decoding) as run:
        run(1)
    sender.send(peak.bytes - before)
