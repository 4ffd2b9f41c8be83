# SPDX-License-Identifier: Apache-2.0
import ctypes

import torch

from vanilla_transformer.native.arena import ALIGNMENT, CHUNK, Arena


def test_copies_stay_what_they_were_wherever_they_lie():
    arena = Arena()
    tensors = [torch.randn(3, 5), torch.randint(-127, 128, (CHUNK - 100,), dtype=torch.int8), torch.randn(7).T]
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
