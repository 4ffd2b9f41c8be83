# SPDX-License-Identifier: Apache-2.0
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from vanilla_transformer.training.checkpoint import list_checkpoints
from vanilla_transformer.training.manifest import MANIFEST, find_damage, write_manifest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "folder"
    (folder / "inner").mkdir(parents=True)
    (folder / "weights").write_bytes(bytes(range(200)))
    (folder / "inner" / "code.py").write_text("pass\n", encoding="utf-8")
    write_manifest(folder)
    return folder


@pytest.fixture
def checkpoint(model_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(list_checkpoints(model_folder.parent / "checkpoints")[-1], tmp_path / "checkpoint"))


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def grow(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\n")


def test_it_lists_every_file_with_size_and_hash(folder: Path):
    assert json.loads((folder / MANIFEST).read_text(encoding="utf-8")) == {
        name: {"size": size, "sha256": hashlib.sha256((folder / name).read_bytes()).hexdigest()}
        for name, size in (("inner/code.py", 5), ("weights", 200))
    }


def test_a_folder_as_it_was_written_is_whole(folder: Path):
    assert find_damage(folder) is None


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (truncate, " bytes, manifest.json says "),
        (grow, " bytes, manifest.json says "),
        (flip_a_bit, " has another sha256 than manifest.json says"),
        (Path.unlink, " is missing"),
    ],
)
def test_damage_to_any_file_of_a_checkpoint_is_named(checkpoint: Path, damage: Callable[[Path], None], said: str):
    files = [path for path in checkpoint.rglob("*") if path.is_file() and path.name != MANIFEST]
    assert {"model.safetensors", "optimizer.safetensors", "config.json", "tokenizer.json"} < {f.name for f in files}
    for path in files:
        before = path.read_bytes()
        damage(path)
        found = find_damage(checkpoint) or "nothing"
        assert found.startswith(f"{path.relative_to(checkpoint).as_posix()} ")
        assert said in found
        path.write_bytes(before)
    assert find_damage(checkpoint) is None


def test_without_hashes_only_sizes_are_compared(folder: Path):
    flip_a_bit(folder / "weights")
    assert find_damage(folder, hashes=False) is None
    truncate(folder / "weights")
    assert find_damage(folder, hashes=False) == "weights has 199 bytes, manifest.json says 200"


def test_without_a_manifest_nothing_is_whole(folder: Path):
    (folder / MANIFEST).unlink()
    assert find_damage(folder) == "manifest.json is missing"


def test_a_manifest_cut_short_is_damage(folder: Path):
    whole = (folder / MANIFEST).read_bytes()
    for length in range(len(whole.rstrip())):
        (folder / MANIFEST).write_bytes(whole[:length])
        assert "manifest.json is no JSON" in (find_damage(folder) or "")


def test_any_bit_of_the_manifest_that_changes_its_meaning_is_damage(folder: Path):
    whole = (folder / MANIFEST).read_bytes()
    for bit in range(8 * len(whole)):
        changed = bytearray(whole)
        changed[bit // 8] ^= 1 << bit % 8
        (folder / MANIFEST).write_bytes(changed)
        assert find_damage(folder) is not None or changed.split() == whole.split()


@pytest.mark.parametrize("text", ["{}", "[]", "3", '{"weights": 3}', '{"weights": {"size": 200}}', '{"weights": null}'])
def test_an_invalid_manifest_is_damage(folder: Path, text: str):
    (folder / MANIFEST).write_text(text, encoding="utf-8")
    assert find_damage(folder) == "manifest.json does not list files with their size and sha256"


@pytest.mark.parametrize("name", ["../beside", "/etc/hostname", "sub/../../beside"])
def test_a_manifest_that_leads_out_of_its_folder_is_damage(folder: Path, name: str):
    (folder.parent / "beside").write_text("", encoding="utf-8")
    entry = {"size": 0, "sha256": hashlib.sha256(b"").hexdigest()}
    (folder / MANIFEST).write_text(json.dumps({name: entry}), encoding="utf-8")
    assert find_damage(folder) == f"manifest.json names {name!r}, which is not a file of the folder"


def test_a_file_that_cannot_be_read_is_damage(folder: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*_):
        raise OSError(5, "Input/output error")  # as a failing disk does

    monkeypatch.setattr(hashlib, "file_digest", fail)
    assert find_damage(folder) == "inner/code.py cannot be read (Input/output error)"
