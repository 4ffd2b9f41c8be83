# SPDX-License-Identifier: Apache-2.0
import hashlib
from pathlib import Path

import pytest

from vanilla_transformer.data import cache
from vanilla_transformer.data.cache import file_fingerprint, prepared_once, unfinished
from vanilla_transformer.data.corpus import CorpusConfig, load_corpus


@pytest.fixture
def digests(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The name of each file that is read to be hashed."""
    digests: list[str] = []
    file_digest = hashlib.file_digest

    def counted(file, name):
        digests.append(Path(file.name).name)
        return file_digest(file, name)

    monkeypatch.setattr(hashlib, "file_digest", counted)
    return digests


def test_fingerprint_of_an_unchanged_file_is_not_computed_again(
    tmp_path: Path, digests: list[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(cache, "RACY_SECONDS", 0)
    (tmp_path / "a").write_bytes(b"x")
    assert file_fingerprint(tmp_path / "a") == file_fingerprint(tmp_path / "a")
    assert digests == ["a"]
    (tmp_path / "a").write_bytes(b"xy")
    assert file_fingerprint(tmp_path / "a") == f"2 bytes, SHA-256 {hashlib.sha256(b'xy').hexdigest()}"
    assert digests == ["a", "a"]


def test_fingerprint_of_a_file_written_a_moment_ago_is_computed_again(
    tmp_path: Path, digests: list[str], monkeypatch: pytest.MonkeyPatch
):
    """Its times may stay if it is written again within a step of the clock."""
    monkeypatch.setattr(cache, "RACY_SECONDS", 3600.0)
    (tmp_path / "a").write_bytes(b"x")
    file_fingerprint(tmp_path / "a")
    file_fingerprint(tmp_path / "a")
    assert digests == ["a", "a"]


def test_an_unfinished_file_does_not_take_the_place(tmp_path: Path):
    path = tmp_path / "a"
    path.write_text("before", encoding="utf-8")
    with pytest.raises(FileNotFoundError), unfinished(path) as partial:  # nothing was written to rename
        assert partial != path
    assert path.read_text("utf-8") == "before"
    assert [file.name for file in tmp_path.iterdir()] == ["a"]


def test_a_corpus_with_a_bad_row_leaves_nothing_behind(tmp_path: Path):
    for side, text in (("source", "a\nb\n"), ("target", "a\n")):
        (tmp_path / side).write_text(text, encoding="utf-8")
    config = CorpusConfig(source=str(tmp_path / "source"), target=str(tmp_path / "target"))
    for _ in range(2):
        with pytest.raises(ValueError, match="has 2 lines"):
            load_corpus(config)
    (tmp_path / "target").write_text("a\nb\n", encoding="utf-8")
    assert load_corpus(config)["target"][:] == ["a", "b"]


def test_prepared_once_gives_one_path_for_one_name():
    with prepared_once("some name") as path:
        path.write_text("x", encoding="utf-8")
    with prepared_once("some name") as again:
        assert again.read_text("utf-8") == "x"
        again.unlink()
