# SPDX-License-Identifier: Apache-2.0
"""Several batches at once, each on a thread of its own."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import torch

Batch = TypeVar("Batch")
Result = TypeVar("Result")


def parallel_batches(function: Callable[[Batch], Result], batches: Sequence[Batch]) -> Iterator[Result]:
    """What `map(function, batches)` gives, in order, of as many batches at once as torch has threads.

    Threads that share a batch wait for one another after every product, and while one of them searches; those with a
    batch each do not. It is for functions that spend their time in compiled loops without the interpreter's lock. Of
    fewer batches, each has several threads.

    Raises:
        Exception: the first that `function` raised, in the order of `batches`; those not yet begun never are.
    """
    threads = torch.get_num_threads()
    at_once = min(threads, len(batches))
    if at_once < 2:
        yield from map(function, batches)
        return
    pool = ThreadPoolExecutor(at_once, initializer=partial(torch.set_num_threads, threads // at_once))
    try:
        yield from pool.map(function, batches)
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)  # torch takes the last number set for that of threads to come
