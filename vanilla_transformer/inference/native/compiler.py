# SPDX-License-Identifier: Apache-2.0
"""The machine's own C++ compiler, asked once for each machine and version."""

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

FLAGS = ("-O3", "-march=native", "-fopenmp", "-std=c++17", "-shared", "-fPIC")
SOURCE = Path(__file__).with_name("transformer.cpp")
HEADERS = sorted(SOURCE.parent.glob("*.h"))
DECIDING = ("CXX", "PATH", "XDG_CACHE_HOME", "HOME")  # variables
MAX_SECONDS = {"--version": 60, "compiling": 600}  # it takes three seconds; a compiler that hangs has many more
REMEDY = "name a folder of your own by XDG_CACHE_HOME"
_refusals: dict[tuple[str | None, ...], str] = {}  # by the values of `DECIDING`: in one line why there was no library


def find_compiler() -> list[str] | None:
    """The program that `CXX` names, perhaps with arguments ("ccache g++"), else c++, g++ or clang++.

    Returns:
        `None`: there is none.
    """
    named = os.environ.get("CXX", "").strip()
    if not named:
        found = map(shutil.which, ["c++", "g++", "clang++"])
        return next(([path] for path in found if path is not None), None)
    try:
        program, *arguments = [named] if shutil.which(named) else shlex.split(named)
    except ValueError:  # a quotation without an end
        return None
    path = shutil.which(program)
    return None if path is None else [path, *arguments]


@cache
def library() -> ctypes.CDLL:
    """transformer.cpp and its headers as a library, compiled where it is not yet.

    It lies in `XDG_CACHE_HOME`/vanilla_transformer (~/.cache), under a name that the source, the compiler and the CPU
    decide, and that ends in the hash of what it holds. Nothing is loaded that has another hash, or that another user
    could have put there. Loaded after torch, it shares torch's OpenMP and so its team of threads: two teams on the same
    cores slow each other down.

    Raises:
        ValueError: there is no compiler, or it refuses; what it made cannot be kept or loaded. The next call tries
            again only if one of the variables `DECIDING` has changed.
    """
    variables = tuple(map(os.environ.get, DECIDING))
    if variables in _refusals:
        raise ValueError(_refusals[variables])
    try:
        return _library()
    except (ValueError, OSError) as error:
        _refusals[variables] = " ".join(str(error).split())
        raise ValueError(_refusals[variables]) from error


def _library() -> ctypes.CDLL:
    compiler = find_compiler()
    if compiler is None:
        named = os.environ.get("CXX", "").strip()
        found = f"CXX={named!r} names no program" if named else "there is no C++ compiler"
        raise ValueError(f"its loops are compiled once, and {found}: install one (Debian: g++), or name it by CXX")
    version = _run(compiler, "--version").stdout
    source = (path.read_text(encoding="utf-8") for path in (SOURCE, *HEADERS))
    parts = (*source, *compiler, version, platform.platform(), _cpu(), *FLAGS)
    key = hashlib.sha256("\0".join(parts).encode(errors="surrogateescape")).hexdigest()[:16]
    folder = _folder()
    kept = (path for path in sorted(folder.glob(f"transformer-{key}-*.so")) if _is_intact(path))
    path = next(kept, None) or _compile(compiler, folder, key)
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:  # also: a file system from which nothing may be executed
        raise ValueError(f"the library that {compiler[0]} compiled cannot be loaded: {error}; {REMEDY}") from error


def _folder() -> Path:
    """The folder of compiled libraries, which only this user, or the system's administrator, can write to."""
    root = os.environ.get("XDG_CACHE_HOME")
    try:
        folder = (Path(root) if root else Path.home() / ".cache") / "vanilla_transformer"
    except RuntimeError:  # no HOME, and a user without an entry in passwd
        raise ValueError(f"compiled libraries are kept in ~/.cache, and this user has no home: {REMEDY}") from None
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        is_own = _only_we_can_write(folder)
        is_readable = os.access(folder, os.R_OK | os.X_OK)
    except OSError as error:
        raise ValueError(
            f"the cache folder {folder} of compiled libraries cannot be made ({error.strerror}): {REMEDY}"
        ) from None
    if not is_own:
        raise ValueError(
            f"other users can write to the cache folder {folder}, so none of it is loaded: {REMEDY}, or chmod go-w it"
        )
    if not is_readable:
        raise ValueError(f"the cache folder {folder} of compiled libraries cannot be read: {REMEDY}")
    return folder


def _only_we_can_write(path: Path) -> bool:
    if os.name != "posix":  # its permissions say nothing there
        return True
    found = path.stat()
    return found.st_uid in (0, os.geteuid()) and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _is_intact(path: Path) -> bool:
    """Whether a file is what its name says, and ours: a library that is cut off would kill the process (SIGBUS)."""
    try:
        return _only_we_can_write(path) and path.stem.endswith(f"-{_digest(path)}")
    except OSError:
        return False


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _cpu() -> str:
    """What -march=native decides by, where Linux tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))


def _compile(compiler: list[str], folder: Path, key: str) -> Path:
    try:
        with tempfile.TemporaryDirectory(dir=folder, ignore_cleanup_errors=True) as inner:
            made = Path(inner) / "transformer.so"
            done = _run(compiler, *FLAGS, str(SOURCE), "-o", str(made))
            if done.returncode:
                raise ValueError(f"{compiler[0]} could not compile {SOURCE.name}: {done.stderr.strip()[-500:]}")
            made.chmod(0o700)  # whatever the umask
            path = folder / f"transformer-{key}-{_digest(made)}.so"
            os.replace(made, path)  # whole or not at all, whoever else compiles
            return path
    except OSError as error:  # a file system that is full, or cannot be written to
        raise ValueError(
            f"the cache folder {folder} of compiled libraries cannot be written to ({error.strerror}): {REMEDY}"
        ) from error


def _run(compiler: Sequence[str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """A call of the compiler.

    Raises:
        ValueError: it cannot be executed, or does not end.
    """
    seconds = MAX_SECONDS["--version" if arguments == ("--version",) else "compiling"]
    try:
        return subprocess.run(
            [*compiler, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=seconds,
            check=False,
        )
    except OSError as error:
        raise ValueError(f"the C++ compiler {compiler[0]} cannot be executed: {error.strerror}") from error
    except subprocess.TimeoutExpired as error:
        raise ValueError(f"the C++ compiler {compiler[0]} has not ended after {seconds} seconds") from error
