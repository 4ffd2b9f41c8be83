# SPDX-License-Identifier: Apache-2.0
import mmap
import sys

import pytest

from vanilla_transformer.benchmark.memory import peak_bytes, reset_peak

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc/self/status")
MIB = 2**20


def test_the_peak_counts_memory_that_is_freed_again():
    before = reset_peak()
    with mmap.mmap(-1, 64 * MIB) as pages:  # malloc may keep what is freed
        for start in range(0, 64 * MIB, MIB):
            pages[start : start + MIB] = bytes(MIB)
    assert peak_bytes() - before == pytest.approx(64 * MIB, rel=0.2)
    assert reset_peak() - before < 32 * MIB
