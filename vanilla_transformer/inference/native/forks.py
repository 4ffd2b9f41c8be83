# SPDX-License-Identifier: Apache-2.0
"""Computing in a process that was forked after its parent had computed on several threads.

The child inherits OpenMP's record of a team of threads, and none of the threads: it would wait for them for ever.
Any computation in the parent counts: training, `generate` or another library.
"""

import logging
import os
from functools import cache

import torch

logger = logging.getLogger(__name__)
_is_forked = False


def _remember() -> None:
    global _is_forked
    _is_forked = True


if os.name == "posix":  # elsewhere no process is forked
    os.register_at_fork(after_in_child=_remember)


def compute_after_fork() -> None:
    """Let a forked process compute on one thread, and say so once; decoding calls this before it computes.

    Whether the parent has computed cannot be told: torch and its libraries start threads as they are imported.
    """
    if _is_forked and (threads := torch.get_num_threads()) > 1:
        _say_once(os.getpid(), threads)
        torch.set_num_threads(1)  # of this Python thread, and of those to come


@cache
def _say_once(process: int, threads: int) -> None:
    logger.warning(
        "process %d was forked, without the %d threads of its parent, and computes on one: for more, start processes "
        'by multiprocessing\'s "spawn" or "forkserver"',
        process,
        threads,
    )
