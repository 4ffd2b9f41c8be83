# SPDX-License-Identifier: Apache-2.0
"""Memory for weights, and for intermediate results."""

import ctypes
import math
import mmap
import re
import sys
import weakref
from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

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


def release_file_pages(tensors: Iterable[torch.Tensor]) -> None:
    """Give back the memory of tensors that are mapped from a file, as safetensors maps weights. Linux only.

    Their values stay: whoever reads a tensor reads the file again. A mapping that was written to is left alone.
    """
    if sys.platform != "linux":
        return
    addresses = [tensor.data_ptr() for tensor in tensors if tensor.device.type == "cpu"]
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    mappings = Path("/proc/self/smaps").read_text(encoding="utf-8", errors="surrogateescape")
    # A header, `start-end permissions offset device inode path`, then lines of `name: number kB`.
    for start, end, inode, body in re.findall(
        r"^([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ (\d+)(.*\n(?:[A-Z]\w+:.*\n)*)", mappings, re.MULTILINE
    ):
        first, last = int(start, 16), int(end, 16)
        is_unchanged = re.search(r"^Anonymous: +0 kB$", body, re.MULTILINE)
        if inode != "0" and is_unchanged and any(first <= address < last for address in addresses):
            madvise(first, last - first, mmap.MADV_DONTNEED)


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
