# SPDX-License-Identifier: Apache-2.0
"""Memory for weights, and for intermediate results."""

import math
import mmap
import sys
import weakref
from collections import defaultdict
from contextlib import suppress

import torch

CHUNK = 2**25  # bytes; untouched pages take no memory
CACHE_LINE = 64  # bytes
HUGE_PAGE = 2**21  # bytes


class Arena:
    """Copies of tensors in one place, on huge pages where Linux has them: a step of decoding has fewer TLB misses."""

    def __init__(self):
        self._chunks: list[tuple[mmap.mmap, torch.Tensor]] = []
        self._used = 0

    def place(self, tensor: torch.Tensor) -> int:
        """The address of a copy, which stays valid as long as the arena lives."""
        size = -(-tensor.nbytes // CACHE_LINE) * CACHE_LINE
        if not self._chunks or self._used + size > len(self._chunks[-1][1]):
            self._add_chunk(max(size, CHUNK))
        memory = self._chunks[-1][1][self._used : self._used + tensor.nbytes]
        memory.view(tensor.dtype).copy_(tensor.flatten())
        self._used += size
        return memory.data_ptr()

    def _add_chunk(self, size: int) -> None:
        memory = mmap.mmap(-1, size + HUGE_PAGE)
        if sys.platform == "linux":
            with suppress(OSError):  # a kernel without huge pages is slower, not wrong
                memory.madvise(mmap.MADV_HUGEPAGE)
        whole = torch.frombuffer(memory, dtype=torch.uint8)
        start = -whole.data_ptr() % HUGE_PAGE
        self._chunks.append((memory, whole[start : start + size]))
        self._used = 0


class BufferPool:
    """Buffers that are used again, because the first touch of new memory costs more than the computation there.

    malloc returns large buffers to the system at once, and decoding a file would spend 8% of its time in page faults.
    A buffer has one user at a time, in any thread.
    """

    def __init__(self):
        self._free: defaultdict[int, list[torch.Tensor]] = defaultdict(list)  # by size

    def take(self, user: object, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Uninitialised memory, for as long as `user` lives; untouched pages take no memory."""
        size = math.prod(shape) * dtype.itemsize
        free = self._free[1 << size.bit_length()]
        try:
            buffer = free.pop()
        except IndexError:
            with torch.inference_mode(False):  # an inference tensor could not be written to outside inference mode
                buffer = torch.empty(1 << size.bit_length(), dtype=torch.uint8)
        weakref.finalize(user, free.append, buffer).atexit = False
        return buffer[:size].view(dtype).view(shape)
