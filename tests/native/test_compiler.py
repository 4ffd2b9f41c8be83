# SPDX-License-Identifier: Apache-2.0
"""The loops are compiled once for each machine, and what cannot be compiled is said."""

import stat

import pytest

from vanilla_transformer.native import compiler


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compiler.library.cache_clear()
    yield tmp_path / "vanilla_transformer"
    compiler.library.cache_clear()


def script(path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(stat.S_IRWXU)
    return str(path)


def test_what_was_compiled_is_found_again(folder, monkeypatch):
    assert compiler.library().panel_width() in (8, 16, 32)
    [made] = folder.iterdir()
    written = made.stat().st_mtime_ns
    compiler.library.cache_clear()
    monkeypatch.setattr(compiler, "_compile", lambda *_: pytest.fail("it was compiled again"))
    compiler.library()
    assert made.stat().st_mtime_ns == written


def test_another_source_is_another_file(folder, monkeypatch, tmp_path):
    compiler.library()
    copies = {one: tmp_path / one.name for one in (compiler.SOURCE, *compiler.HEADERS)}
    for one, copy in copies.items():
        copy.write_text(one.read_text())
    copies[compiler.HEADERS[0]].write_text(compiler.HEADERS[0].read_text() + "// changed\n")
    monkeypatch.setattr(compiler, "SOURCE", copies[compiler.SOURCE])
    monkeypatch.setattr(compiler, "HEADERS", [copies[one] for one in compiler.HEADERS])
    compiler.library.cache_clear()
    compiler.library()
    assert len(list(folder.iterdir())) == 2


def test_without_a_compiler_the_remedy_is_named(monkeypatch):
    monkeypatch.setattr(compiler.shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match=r"there is no C\+\+ compiler: install one"):
        compiler.library()


def test_cxx_names_the_compiler(tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", script(tmp_path / "mine", "exit 1"))
    assert compiler.find_compiler() == str(tmp_path / "mine")


def test_what_the_compiler_says_is_passed_on_and_nothing_is_left(tmp_path, folder, monkeypatch):
    monkeypatch.setenv("CXX", script(tmp_path / "mine", "echo 'no such machine' >&2; exit 1"))
    with pytest.raises(ValueError, match="could not compile transformer.cpp: no such machine"):
        compiler.library()
    assert list(folder.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(ValueError, match="cannot be made .* XDG_CACHE_HOME"):
        compiler.library()
