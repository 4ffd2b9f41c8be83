# SPDX-License-Identifier: Apache-2.0
import ctypes
import mmap

import torch

from vanilla_transformer.inference.native.memory import ALIGNMENT, CHUNK, Arena, Buffers


def test_copies_stay_what_they_were_wherever_they_lie():
    arena = Arena()
    tensors = [torch.randn(3, 5), torch.randint(-127, 128, (CHUNK - 100,), dtype=torch.int8), torch.randn(7)]
    tensors.append(torch.randn(4, 6).t())  # not contiguous
    addresses = [arena.place(one) for one in tensors]
    originals = [one.clone() for one in tensors]
    for one in tensors:
        one.zero_()
    for address, original in zip(addresses, originals, strict=True):
        assert address % ALIGNMENT == 0
        there = ctypes.string_at(address, original.nbytes)
        assert there == original.contiguous().flatten().numpy().tobytes()


def test_more_than_a_chunk_has_its_own():
    arena = Arena()
    first, large = arena.place(torch.ones(1)), arena.place(torch.ones(CHUNK // 4 + 1))
    assert ctypes.c_float.from_address(first).value == 1.0
    assert ctypes.c_float.from_address(large + CHUNK).value == 1.0


def test_a_kernel_without_large_pages_has_memory_all_the_same(monkeypatch):
    class Plain(mmap.mmap):
        def madvise(self, *_):
            raise OSError(22, "Invalid argument")

    monkeypatch.setattr(mmap, "mmap", Plain)
    assert ctypes.c_float.from_address(Arena().place(torch.ones(1))).value == 1.0


class User:
    """Someone who needs memory."""


def test_a_buffer_is_used_again_when_its_user_is_gone():
    buffers, user = Buffers(), User()
    first = buffers.take(user, 3, 100)
    assert first.shape == (3, 100)
    address = first.data_ptr()
    assert buffers.take(user, 300).data_ptr() != address  # it is in use
    del user
    assert buffers.take(User(), 150, 2, dtype=torch.int32).data_ptr() == address


def test_two_users_at_once_do_not_share():
    buffers, users = Buffers(), [User(), User()]
    one, other = (buffers.take(user, 1000).fill_(number) for number, user in enumerate(users))
    assert not one.any()
    assert bool((other == 1).all())


def test_what_is_taken_in_inference_mode_is_written_elsewhere():
    buffers = Buffers()
    with torch.inference_mode():
        buffers.take(User(), 10)
    buffers.take(User(), 10).zero_()
