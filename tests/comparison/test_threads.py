# SPDX-License-Identifier: Apache-2.0
import os

import pytest
import torch

from vanilla_transformer.comparison.threads import check_threads, cpu_threads


def test_threads_are_set_and_restored():
    before = torch.get_num_threads()
    with cpu_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_more_threads_than_cores_are_refused():
    check_threads("speed.threads", [1])
    cores = os.cpu_count() or 1
    with pytest.raises(ValueError, match=rf"speed.threads=\[1, {cores + 1}\] must be at most \d+, the cores of"):
        check_threads("speed.threads", [1, cores + 1])
