# SPDX-License-Identifier: Apache-2.0
"""The library is compiled once for each machine, and what goes wrong is an error of one line with its remedy."""

import os
import platform
import pwd
import runpy
import shutil
import stat
import tempfile
from pathlib import Path

import pytest

from vanilla_transformer.inference.native import compiler


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The cache folder, for a small source of its own."""
    source, header = tmp_path / "transformer.cpp", tmp_path / "width.h"
    source.write_text('#include "width.h"\nextern "C" int panel_width() { return WIDTH; }\n', encoding="utf-8")
    header.write_text("#define WIDTH 8\n", encoding="utf-8")
    monkeypatch.setattr(compiler, "SOURCE", source)
    monkeypatch.setattr(compiler, "HEADERS", [header])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compiler.library.cache_clear()
    yield tmp_path / "vanilla_transformer"
    compiler.library.cache_clear()


def script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
    path.chmod(stat.S_IRWXU)
    return str(path)


def test_cached_library_is_not_compiled_again(folder, monkeypatch):
    assert compiler.library().panel_width() == 8
    [made] = folder.iterdir()
    written = made.stat().st_mtime_ns
    compiler.library.cache_clear()
    monkeypatch.setattr(compiler, "_compile", lambda *_: pytest.fail("it was compiled again"))
    compiler.library()
    assert made.stat().st_mtime_ns == written


@pytest.mark.parametrize(
    ("machine", "flag"), [("x86_64", "-march=native"), ("aarch64", "-mcpu=native"), ("arm64", "-mcpu=native")]
)
def test_compiler_gets_the_flag_that_it_knows_for_this_cpu(monkeypatch, machine, flag):
    monkeypatch.setattr(platform, "machine", lambda: machine)
    flags = runpy.run_path(compiler.__file__)["FLAGS"]
    assert [name for name in flags if name.endswith("=native")] == [flag]


def test_arm_cpus_with_the_same_features_are_told_apart(monkeypatch):
    """-mcpu=native depends on the parts, several of which a CPU may have, and not on the order of the cores."""
    core = "processor\t: {}\nFeatures\t: fp asimd\nCPU implementer\t: 0x41\nCPU part\t: {}\n\n"

    def features(*parts: str) -> str:
        text = "".join(core.format(*numbered) for numbered in enumerate(parts))
        monkeypatch.setattr(Path, "read_text", lambda *_, **__: text)
        return compiler.cpu_features()

    assert features("0xd03", "0xd08") == features("0xd08", "0xd03")
    assert len({features("0xd03"), features("0xd08"), features("0xd03", "0xd08")}) == 3


def test_changed_source_is_compiled_anew(folder):
    compiler.library()
    compiler.HEADERS[0].write_text("#define WIDTH 16\n", encoding="utf-8")
    compiler.library.cache_clear()
    assert compiler.library().panel_width() == 16
    assert len(list(folder.iterdir())) == 2


@pytest.mark.parametrize(
    "damage", [lambda content: content[:1000], lambda content: b"", lambda content: content + b"x"]
)
def test_damaged_library_is_compiled_anew(folder, monkeypatch, damage):
    monkeypatch.setattr(compiler.ctypes, "CDLL", Path)  # not loaded: one that is cut off would end this process
    path = compiler.library()
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    compiler.library.cache_clear()
    assert compiler.library().read_bytes() == whole


def test_library_that_others_can_write_is_compiled_anew(folder):
    compiler.library()
    [path] = folder.iterdir()
    path.chmod(0o722)
    compiler.library.cache_clear()
    compiler.library()
    assert not path.stat().st_mode & 0o022


@pytest.mark.parametrize("mode", [0o777, 0o770])
def test_cache_folder_that_others_can_write_is_refused(folder, mode):
    folder.mkdir()
    folder.chmod(mode)
    with pytest.raises(ValueError, match="other users can write to the cache folder .* XDG_CACHE_HOME"):
        compiler.library()
    assert list(folder.iterdir()) == []


def test_cache_folder_of_another_user_is_refused(folder, monkeypatch):
    folder.mkdir(mode=0o700)
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    if folder.stat().st_uid == 0:  # what the administrator has put there may be loaded
        os.chown(folder, 54321, -1)
    with pytest.raises(ValueError, match="other users can write to the cache folder"):
        compiler.library()


def test_cache_folder_on_a_read_only_file_system_is_an_error(folder, monkeypatch):
    def refuses(*_, **__):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(tempfile, "TemporaryDirectory", refuses)
    with pytest.raises(ValueError, match=r"cannot be written to \(Read-only file system\): .* XDG_CACHE_HOME"):
        compiler.library()


def test_cached_library_is_loaded_from_a_read_only_file_system(folder, monkeypatch):
    compiler.library()
    compiler.library.cache_clear()
    monkeypatch.setattr(tempfile, "TemporaryDirectory", lambda **_: pytest.fail("it was written to"))
    assert compiler.library().panel_width() == 8


def test_user_without_a_home_is_an_error(monkeypatch):
    def has_no_entry(_):
        raise KeyError

    for name in ("XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", has_no_entry)
    with pytest.raises(ValueError, match="this user has no home: .* XDG_CACHE_HOME"):
        compiler.library()


def test_cache_folder_that_cannot_be_made_is_an_error(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(ValueError, match="cannot be made .* XDG_CACHE_HOME"):
        compiler.library()


def test_missing_compiler_is_an_error_with_its_remedy(monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(compiler.shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match=r"there is no C\+\+ compiler: install one"):
        compiler.library()


@pytest.mark.parametrize("named", ["/nowhere/c++", "'c++", "nowhere --fast"])
def test_cxx_that_names_no_program_is_an_error(named, monkeypatch):
    monkeypatch.setenv("CXX", named)
    with pytest.raises(ValueError, match="CXX=.* names no program") as error:
        compiler.library()
    assert named in str(error.value)


def test_cxx_names_the_compiler(tmp_path, monkeypatch):
    for folder in ("bin", "my tools"):
        (tmp_path / folder).mkdir()
        mine = script(tmp_path / folder / "mine", "exit 1")
        monkeypatch.setenv("CXX", mine)
        assert compiler.find_compiler() == [mine]


def test_cxx_may_have_arguments(monkeypatch):
    monkeypatch.setenv("CXX", "env c++ -DUNUSED='a b'")
    assert compiler.find_compiler() == [shutil.which("env"), "c++", "-DUNUSED=a b"]
    assert compiler.library().panel_width() == 8


def test_compiler_that_cannot_be_executed_is_an_error(tmp_path, monkeypatch):
    program = tmp_path / "mine"
    program.write_bytes(b"\x7fELF and no more")
    program.chmod(stat.S_IRWXU)
    monkeypatch.setenv("CXX", str(program))
    with pytest.raises(ValueError, match=f"{program} cannot be executed: "):
        compiler.library()


def test_compiler_that_hangs_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", script(tmp_path / "mine", "exec sleep 60"))
    monkeypatch.setattr(compiler, "MAX_SECONDS", {"--version": 0.1})
    with pytest.raises(ValueError, match="mine has not ended after 0.1 seconds"):
        compiler.library()


def test_compiler_error_is_one_line_and_leaves_no_file(tmp_path, folder, monkeypatch):
    said = r"printf 'no such\nmachine \377' >&2; exit 1"  # in no encoding
    monkeypatch.setenv("CXX", script(tmp_path / "mine", said))
    with pytest.raises(ValueError, match="could not compile transformer.cpp: no such machine"):
        compiler.library()
    assert list(folder.iterdir()) == []


def test_failed_compilation_is_not_repeated_until_the_environment_changes(tmp_path, monkeypatch):
    calls = tmp_path / "calls"
    monkeypatch.setenv("CXX", script(tmp_path / "mine", f"echo called >> {calls}; exit 1"))
    for _ in range(3):
        with pytest.raises(ValueError, match="could not compile"):
            compiler.library()
    assert calls.read_text(encoding="utf-8").count("called") == 2  # its version, and the compiling
    monkeypatch.delenv("CXX")
    assert compiler.library().panel_width() == 8


def test_library_that_cannot_be_loaded_is_an_error(monkeypatch):
    def refuses(path):
        raise OSError(f"{path}: failed to map segment from shared object: Operation not permitted")

    monkeypatch.setattr(compiler.ctypes, "CDLL", refuses)
    with pytest.raises(ValueError, match="cannot be loaded: .* Operation not permitted; .* XDG_CACHE_HOME"):
        compiler.library()
