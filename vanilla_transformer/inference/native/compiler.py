# SPDX-License-Identifier: Apache-2.0
"""Compiles transformer.cpp with the machine's own C++ compiler, once for each machine and version."""

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import stat
import subprocess
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path

IS_ARM = platform.machine().lower() in ("aarch64", "arm64")  # Linux; macOS and Windows
# Compilers for x86 know -march=native. GCC and clang for ARM know -mcpu=native, and not every clang -march=native.
FLAGS = ("-O3", "-mcpu=native" if IS_ARM else "-march=native", "-fopenmp", "-std=c++17", "-shared", "-fPIC")
SOURCE = Path(__file__).with_name("transformer.cpp")
HEADERS = sorted(SOURCE.parent.glob("*.h"))
VARIABLES = ("CXX", "PATH", "XDG_CACHE_HOME", "HOME")  # of the environment, that decide where and by what
MAX_SECONDS = {"--version": 60, "compiling": 600}  # compiling takes three seconds, on a busy machine many more
CPU_FIELDS = ("model name", "flags", "CPU implementer", "CPU variant", "CPU part", "Features")  # x86: the first two
REMEDY = "name a folder of your own by XDG_CACHE_HOME"
_errors: dict[tuple[str | None, ...], str] = {}  # by the values of VARIABLES


def find_compiler() -> list[str]:
    """The program that `CXX` names, perhaps with arguments ("ccache g++"), else c++, g++ or clang++.

    Raises:
        ValueError: there is none.
    """
    named = os.environ.get("CXX", "").strip()
    candidates = [[named]] if named else [["c++"], ["g++"], ["clang++"]]
    with suppress(ValueError):  # an unbalanced quotation mark
        candidates.append(shlex.split(named))
    for program, *arguments in filter(None, candidates):
        if (path := shutil.which(program)) is not None:
            return [path, *arguments]
    found = f"CXX={named!r} names no program" if named else "there is no C++ compiler"
    raise ValueError(f"its kernels are compiled once, and {found}: install one (Debian: g++), or name it by CXX")


@cache
def library() -> ctypes.CDLL:
    """transformer.cpp as a library, compiled if the cache does not have it.

    The cache is `XDG_CACHE_HOME`/vanilla_transformer (~/.cache). A file's name has a hash of the sources, compiler,
    flags and CPU, and a hash of the file's content. A file with another content, or that another user could have
    written, is never loaded. If torch is loaded first, the library shares torch's OpenMP and its team of threads: two
    teams on the same cores slow each other down.

    Raises:
        ValueError: there is no compiler, or it fails; the library cannot be kept or loaded. The next call tries again
            only if one of `VARIABLES` has changed.
    """
    variables = tuple(map(os.environ.get, VARIABLES))
    if variables not in _errors:
        try:
            return _load()
        except (ValueError, OSError) as error:
            _errors[variables] = " ".join(str(error).split())
            raise ValueError(_errors[variables]) from error
    raise ValueError(_errors[variables])


def _load() -> ctypes.CDLL:
    compiler = find_compiler()
    sources = (path.read_text(encoding="utf-8") for path in (SOURCE, *HEADERS))
    parts = (*sources, *compiler, _run(compiler, "--version").stdout, platform.platform(), cpu_features(), *FLAGS)
    key = hashlib.sha256("\0".join(parts).encode(errors="surrogateescape")).hexdigest()[:16]
    folder = _cache_folder()
    path = next(filter(_is_intact, sorted(folder.glob(f"transformer-{key}-*.so"))), None)
    try:
        return ctypes.CDLL(str(path or _compile(compiler, folder, key)))
    except OSError as error:  # also: a file system mounted noexec
        raise ValueError(f"the library that {compiler[0]} compiled cannot be loaded: {error}; {REMEDY}") from error


def _cache_folder() -> Path:
    """The folder of compiled libraries, which only this user or the administrator can write to."""
    root = os.environ.get("XDG_CACHE_HOME")
    try:
        folder = (Path(root) if root else Path.home() / ".cache") / "vanilla_transformer"
    except RuntimeError:  # no HOME, and no entry in passwd
        raise ValueError(f"compiled libraries are kept in ~/.cache, and this user has no home: {REMEDY}") from None
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        is_private = _is_private(folder)
    except OSError as error:
        raise ValueError(
            f"the cache folder {folder} of compiled libraries cannot be made ({error.strerror}): {REMEDY}"
        ) from None
    if not is_private:
        raise ValueError(
            f"other users can write to the cache folder {folder}, so none of it is loaded: {REMEDY}, or chmod go-w it"
        )
    return folder


def _is_private(path: Path) -> bool:
    if os.name != "posix":  # permission bits say nothing there
        return True
    found = path.stat()
    return found.st_uid in (0, os.geteuid()) and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _is_intact(path: Path) -> bool:
    """Whether a library is private and has the content that its name says: a truncated one would raise SIGBUS."""
    try:
        return _is_private(path) and path.stem.endswith(f"-{_digest(path)}")
    except OSError:
        return False


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def cpu_features() -> str:
    """The CPU's model and features, as far as the system tells them; the compiler's `native` depends on them."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return f"{platform.processor()} {platform.version()}"  # macOS names the chip in its version
    return "\n".join(sorted({line for line in lines if line.startswith(CPU_FIELDS)}))


def _compile(compiler: list[str], folder: Path, key: str) -> Path:
    try:
        with tempfile.TemporaryDirectory(dir=folder, ignore_cleanup_errors=True) as inner:
            compiled = Path(inner) / "transformer.so"
            done = _run(compiler, *FLAGS, str(SOURCE), "-o", str(compiled))
            if done.returncode:
                raise ValueError(f"{compiler[0]} could not compile {SOURCE.name}: {done.stderr.strip()[-500:]}")
            compiled.chmod(0o700)  # whatever the umask
            path = folder / f"transformer-{key}-{_digest(compiled)}.so"
            os.replace(compiled, path)  # atomic, if several processes compile
            return path
    except OSError as error:  # the file system is full or read-only
        raise ValueError(
            f"the cache folder {folder} of compiled libraries cannot be written to ({error.strerror}): {REMEDY}"
        ) from error


def _run(compiler: list[str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the compiler.

    Raises:
        ValueError: it cannot be executed, or runs too long.
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
