# SPDX-License-Identifier: Apache-2.0
import subprocess
import sys

import pytest

MAX_GROWTH = 40  # megabytes of growth, less than half of what 100,000 rows take that are held in memory


@pytest.mark.slow
def test_memory_of_a_stream_is_constant():
    """From half of the pairs to all, when buffers are full. A process of its own, whose peak is of this alone."""
    command = [sys.executable, "-m", "tests.data.streaming_size", "--pairs", "200000", "--pool-size", "2000"]
    ended = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=900, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    megabytes = [float(line.split()[-5]) for line in ended.stdout.splitlines() if line.endswith("at most")]
    assert len(megabytes) == 11
    assert megabytes[-1] - megabytes[5] < MAX_GROWTH
