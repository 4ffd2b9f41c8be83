# SPDX-License-Identifier: Apache-2.0
"""Computing in a process that was forked after its parent had computed on several threads.

The child inherits OpenMP's record of a team of threads, and none of the threads: it would wait for them for ever.
"""

import logging
import os
from functools import cache

import torch

logger = logging.getLogger(__name__)
_process: int | None = None  # which computed last
_is_forked = False


def compute_after_fork() -> None:
    """To be called before anything is computed: a forked process computes on one thread, and says so once.

    Nothing is registered with the operating system, and nothing happens in a process whose parent has not called this.
    """
    global _process, _is_forked
    _is_forked = _is_forked or _process not in (None, os.getpid())
    _process = os.getpid()
    if _is_forked and (threads := torch.get_num_threads()) > 1:
        _say_once(_process, threads)
        torch.set_num_threads(1)  # of this Python thread, and of those to come


@cache
def _say_once(process: int, threads: int) -> None:
    logger.warning(
        "process %d was forked after its parent had computed on %d threads, and computes on one: for more, start "
        'processes by multiprocessing\'s "spawn" or "forkserver"',
        process,
        threads,
    )
