# SPDX-License-Identifier: Apache-2.0
import ctypes
import mmap
import re
import sys
from pathlib import Path

import pytest
import torch

from vanilla_transformer.inference.native.memory import (
    CACHE_LINE,
    CHUNK,
    Arena,
    BufferPool,
    release_file_pages,
)


def test_arena_copies_are_aligned_and_independent_of_their_tensors():
    arena = Arena()
    tensors = [torch.randn(3, 5), torch.randint(-127, 128, (CHUNK - 100,), dtype=torch.int8), torch.randn(7)]
    tensors.append(torch.randn(4, 6).t())  # not contiguous
    addresses = [arena.place(tensor) for tensor in tensors]
    originals = [tensor.clone() for tensor in tensors]
    for tensor in tensors:
        tensor.zero_()
    for address, original in zip(addresses, originals, strict=True):
        assert address % CACHE_LINE == 0
        assert ctypes.string_at(address, original.nbytes) == original.contiguous().flatten().numpy().tobytes()


def test_tensor_larger_than_a_chunk_has_its_own_chunk():
    arena = Arena()
    first, large = arena.place(torch.ones(1)), arena.place(torch.ones(CHUNK // 4 + 1))
    assert ctypes.c_float.from_address(first).value == 1.0
    assert ctypes.c_float.from_address(large + CHUNK).value == 1.0


def test_kernel_without_huge_pages(monkeypatch):
    class Plain(mmap.mmap):
        def madvise(self, *_):
            raise OSError(22, "Invalid argument")

    monkeypatch.setattr(mmap, "mmap", Plain)
    assert ctypes.c_float.from_address(Arena().place(torch.ones(1))).value == 1.0


class User:
    """Owns buffers."""


def test_buffer_reuse_after_its_user_is_gone():
    buffers, user = BufferPool(), User()
    first = buffers.take(user, 3, 100)
    assert first.shape == (3, 100)
    address = first.data_ptr()
    assert buffers.take(user, 300).data_ptr() != address  # it is in use
    del user
    assert buffers.take(User(), 150, 2, dtype=torch.int32).data_ptr() == address


def test_buffers_in_use_do_not_overlap():
    buffers, users = BufferPool(), [User(), User()]
    first, second = (buffers.take(user, 1000).fill_(number) for number, user in enumerate(users))
    assert not first.any()
    assert bool((second == 1).all())


def test_buffer_from_inference_mode_is_writable_outside_it():
    buffers = BufferPool()
    with torch.inference_mode():
        buffers.take(User(), 10)
    buffers.take(User(), 10).zero_()


def resident_kilobytes(path: Path) -> int:
    """The pages in this process's mapping of a file."""
    mappings = Path("/proc/self/smaps").read_text(encoding="utf-8")
    return int(re.findall(rf" {re.escape(str(path))}\n(?:.*\n)*?Rss: +(\d+) kB", mappings)[0])


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells which pages are resident")
def test_release_of_file_pages_keeps_every_value(tmp_path):
    """Some tensors are read from the file, some are written since, and some are in other memory."""
    paths = [tmp_path / "unchanged", tmp_path / "changed"]
    mapped = []
    for path in paths:
        path.write_bytes(torch.arange(2**20, dtype=torch.float32).numpy().tobytes())
        mapped.append(torch.from_file(str(path), shared=False, size=2**20))
    mapped[1][7] = -1
    tensors = [*mapped, torch.randn(2**20)]
    values = [tensor.clone() for tensor in tensors]
    assert min(map(resident_kilobytes, paths)) >= 4096
    release_file_pages(tensors)
    assert resident_kilobytes(paths[0]) == 0
    assert all(map(torch.equal, tensors, values))
