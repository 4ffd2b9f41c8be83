# SPDX-License-Identifier: Apache-2.0
"""Several batches at once, each on its own thread."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import torch

Batch = TypeVar("Batch")
Result = TypeVar("Result")


def parallel_batches(function: Callable[[Batch], Result], batches: Sequence[Batch], at_once: int) -> Iterator[Result]:
    """`map(function, batches)`, with `at_once` batches computed in parallel, which share torch's threads.

    Threads that share a batch wait for one another after every product, and while one of them searches; threads with
    a batch each do not. It pays for functions that run in compiled kernels without the interpreter's lock.

    Raises:
        Exception: the first that `function` raised, in the order of `batches`; batches not yet begun never are.
    """
    threads, at_once = torch.get_num_threads(), min(at_once, len(batches))
    if at_once < 2:
        yield from map(function, batches)
        return
    pool = ThreadPoolExecutor(at_once, initializer=partial(torch.set_num_threads, max(1, threads // at_once)))
    try:
        yield from pool.map(function, batches)
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)  # torch takes the last number set as that of threads to come
