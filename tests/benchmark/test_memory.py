# SPDX-License-Identifier: Apache-2.0
import sys

import pytest
import torch

from vanilla_transformer.benchmark.memory import ResidentPeak, resident_bytes

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc/self/statm")
MIB = 2**20


def test_the_peak_counts_what_was_there_and_is_gone():
    before = resident_bytes()
    with ResidentPeak() as peak:
        numbers = torch.ones(64 * MIB // 4)
        for _ in range(50):
            numbers.add_(1)  # long enough for a sample
        del numbers
    assert peak.bytes - before == pytest.approx(64 * MIB, rel=0.2)
    assert resident_bytes() - before < 32 * MIB
