# SPDX-License-Identifier: Apache-2.0
"""`python -m tests.distributed.world_sizes`: processes, accumulation and FSDP2 make no other model."""

from pathlib import Path

import pytest
import torch

from tests.distributed.world_sizes import ALONE, MODELS, OTHERS, Trained, Way, compare


def assert_same(trained: dict[Way, Trained], ways: list[Way]) -> None:
    alone = trained[ALONE]
    assert alone.losses[-5:].mean() < alone.losses[:5].mean()
    for way in ways:
        assert trained[way].weights_differ(alone) <= 1e-6
        assert trained[way].losses_differ(alone) <= 1e-6


def test_two_processes_train_as_one(tmp_path: Path):
    ways = [Way(2), Way(2, sharded=True)]
    assert_same(compare(ways, tmp_path, "Transformer", torch.float64, updates=20), ways)


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_four_processes_train_as_one(model: str, tmp_path: Path):
    assert_same(compare(OTHERS, tmp_path, model, torch.float64, updates=20), OTHERS)


@pytest.mark.slow
def test_losses_of_200_updates_differ_by_the_rounding_of_float32(tmp_path: Path):
    trained = compare(OTHERS, tmp_path, "Transformer", torch.float32, updates=200)
    for way in OTHERS:
        assert trained[way].losses_differ(trained[ALONE]) < 1e-5
