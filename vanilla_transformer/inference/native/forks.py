# SPDX-License-Identifier: Apache-2.0
"""Decoding in a process that was forked after its parent had computed on several threads.

The child inherits OpenMP's record of a team of threads, but none of the threads, and would wait for them forever. Any
computation in the parent counts: training, `generate` or another library.
"""

import os

import torch
from transformers.utils.logging import get_logger

logger = get_logger(__name__)
_is_forked = False


def _mark_forked() -> None:
    global _is_forked
    _is_forked = True


if os.name == "posix":  # only there processes fork
    os.register_at_fork(after_in_child=_mark_forked)


def compute_after_fork() -> None:
    """Limit a forked process to one thread, and log a warning once; decoders call this before they compute.

    Nothing tells whether the parent has computed: torch and its libraries start threads as they are imported.
    """
    if _is_forked and (threads := torch.get_num_threads()) > 1:
        logger.warning_once(
            "process %d was forked, without the %d threads of its parent, and computes on one: for more, start "
            'processes by multiprocessing\'s "spawn" or "forkserver"',
            os.getpid(),
            threads,
        )
        torch.set_num_threads(1)  # of this Python thread, and of later ones
