# SPDX-License-Identifier: Apache-2.0
"""Memory for weights that are read from end to end at every step."""

import mmap
import sys

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
            memory.madvise(mmap.MADV_HUGEPAGE)
        whole = torch.frombuffer(memory, dtype=torch.uint8)
        start = -whole.data_ptr() % HUGE
        self._chunks.append((memory, whole[start : start + size]))
        self._used = 0
