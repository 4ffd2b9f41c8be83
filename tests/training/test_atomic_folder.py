# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pytest
from safetensors import SafetensorError

from vanilla_transformer.training.atomic_folder import atomic_folder, clear_interrupted


def test_atomic_replacement_of_a_folder(tmp_path: Path):
    folder = tmp_path / "model"
    for text in ("old", "new"):
        with atomic_folder(folder) as unfinished:
            assert text == "old" or (folder / "weights").read_text(encoding="utf-8") == "old"
            (unfinished / "weights").write_text(text, encoding="utf-8")
    assert (folder / "weights").read_text(encoding="utf-8") == "new"
    assert list(tmp_path.iterdir()) == [folder]


def test_atomic_replacement_rolls_back_on_an_error(tmp_path: Path):
    folder = tmp_path / "model"
    with atomic_folder(folder) as unfinished:
        (unfinished / "weights").write_text("old", encoding="utf-8")

    def fail():
        with atomic_folder(folder) as unfinished:
            (unfinished / "weights").write_text("half of the n", encoding="utf-8")
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        fail()
    assert (folder / "weights").read_text(encoding="utf-8") == "old"


@pytest.mark.parametrize(
    "error",  # each library has its own
    [
        OSError(28, "No space left on device"),
        SafetensorError("No space left"),
        Exception("No space left (os error 28)"),
    ],
    ids=["Python", "safetensors", "tokenizers"],
)
def test_disk_errors_leave_no_unfinished_folder(tmp_path: Path, error: Exception):
    folder = tmp_path / "model"

    def fail():
        with atomic_folder(folder) as unfinished:
            (unfinished / "weights").write_text("half of the n", encoding="utf-8")
            raise error

    with pytest.raises(OSError, match=f"^{folder} cannot be written .*No space left.*; what was there before is as it"):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_replacement_is_undone(tmp_path: Path):
    """A process may be killed between any two steps of a replacement."""
    for name in (".replaced-update-00000004", ".replaced-update-00000008", "update-00000008", ".unfinished-a"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").write_text(name, encoding="utf-8")
    clear_interrupted(tmp_path)
    assert {path.parent.name: path.read_text(encoding="utf-8") for path in tmp_path.glob("*/weights")} == {
        "update-00000004": ".replaced-update-00000004",
        "update-00000008": "update-00000008",
    }
