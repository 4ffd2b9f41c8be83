# SPDX-License-Identifier: Apache-2.0
"""Memory for weights, and for what is computed with them."""

import math
import mmap
import sys
import weakref
from collections import defaultdict
from contextlib import suppress

import torch

CHUNK = 2**25  # bytes; untouched ones are no memory yet
ALIGNMENT = 64  # bytes of a cache line
HUGE = 2**21  # bytes of a large page


class Arena:
    """Copies of tensors side by side, on large pages where Linux has them: a step of decoding meets fewer of them."""

    def __init__(self):
        self._chunks: list[tuple[mmap.mmap, torch.Tensor]] = []
        self._used = 0

    def place(self, tensor: torch.Tensor) -> int:
        """The address of a copy, which stays valid as long as this object lives."""
        size = -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
        if not self._chunks or self._used + size > len(self._chunks[-1][1]):
            self._add_chunk(max(size, CHUNK))
        memory = self._chunks[-1][1][self._used : self._used + tensor.nbytes]
        memory.view(tensor.dtype).copy_(tensor.flatten())
        self._used += size
        return memory.data_ptr()

    def _add_chunk(self, size: int) -> None:
        memory = mmap.mmap(-1, size + HUGE)
        if sys.platform == "linux":
            with suppress(OSError):  # a kernel without large pages: it is slower, not wrong
                memory.madvise(mmap.MADV_HUGEPAGE)
        whole = torch.frombuffer(memory, dtype=torch.uint8)
        start = -whole.data_ptr() % HUGE
        self._chunks.append((memory, whole[start : start + size]))
        self._used = 0


class Buffers:
    """Buffers that are used again: the first touch of new memory costs more than what is computed there.

    The C library gives large ones back to the system at once, and decoding a file would spend 8% of its time in page
    faults. A buffer has one user at a time, in whatever thread.
    """

    def __init__(self):
        self._free: defaultdict[int, list[torch.Tensor]] = defaultdict(list)  # by size

    def take(self, user: object, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Uninitialised memory, for as long as `user` lives; what of it is not touched is no memory."""
        size = math.prod(shape) * dtype.itemsize
        free = self._free[1 << size.bit_length()]
        try:
            buffer = free.pop()
        except IndexError:
            with torch.inference_mode(False):  # or it could not be written to in any other mode
                buffer = torch.empty(1 << size.bit_length(), dtype=torch.uint8)
        weakref.finalize(user, free.append, buffer).atexit = False
        return buffer[:size].view(dtype).view(shape)
