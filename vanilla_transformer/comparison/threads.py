# SPDX-License-Identifier: Apache-2.0
"""The CPU threads that a measurement computes with."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def cpu_threads(threads: int) -> Iterator[None]:
    """torch computes with this number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def check_threads(where: str, threads: list[int]) -> None:
    """Raise ValueError for more threads than this process has cores: they would wait for each other."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    if max(threads) > cores:
        raise ValueError(f"{where}={threads} must be at most {cores}, the cores of this process")
