# SPDX-License-Identifier: Apache-2.0
"""Sources whose toolkit is not given."""

import argparse
from fractions import Fraction
from pathlib import Path

import pytest
import torch

from vanilla_transformer.importing.import_model import import_model


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "checkpoint_best.pt"
    weights = {"encoder.embed_tokens.weight": torch.zeros(50, 80)}
    torch.save({"model": weights, "args": argparse.Namespace(arch="transformer")}, path)
    return path


def test_a_checkpoint_of_fairseq_without_dictionaries_is_recognised(checkpoint: Path, tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"there is no dictionary dict\.LANGUAGE\.txt in "):
        import_model(checkpoint, tmp_path / "out")


def test_a_truncated_file_is_said_to_be_damaged(checkpoint: Path, tmp_path: Path):
    checkpoint.write_bytes(checkpoint.read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"is no checkpoint, or it is damaged \(truncated download or copy\?\)"):
        import_model(checkpoint, tmp_path / "out")


def test_an_object_that_is_not_read_is_named(tmp_path: Path):
    torch.save({"model": Fraction(1, 2)}, tmp_path / "foreign.pt")
    with pytest.raises(ValueError, match=r"holds an object of fractions\.Fraction"):
        import_model(tmp_path / "foreign.pt", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_another_state_dict_is_of_no_toolkit(tmp_path: Path):
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="is of no toolkit that is recognised"):
        import_model(tmp_path / "other.pt", tmp_path / "out")
