# SPDX-License-Identifier: Apache-2.0
"""The machine's own C++ compiler, asked once for each machine and version."""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

FLAGS = ("-O3", "-march=native", "-fopenmp", "-std=c++17", "-shared", "-fPIC")
SOURCE = Path(__file__).with_name("transformer.cpp")
HEADERS = sorted(SOURCE.parent.glob("*.h"))


def find_compiler() -> str | None:
    """The program that `CXX` names, else c++, g++ or clang++; `None`: there is none."""
    named = os.environ.get("CXX")
    found = map(shutil.which, [named] if named else ["c++", "g++", "clang++"])
    return next((one for one in found if one is not None), None)


@cache
def library() -> ctypes.CDLL:
    """transformer.cpp and its headers as a library, compiled where it is not yet.

    It lies in `XDG_CACHE_HOME`/vanilla_transformer (~/.cache), under a name that the source, the compiler and the CPU
    decide. Loaded after torch, it shares torch's OpenMP and so its team of threads: two teams on the same cores slow
    each other down.

    Raises:
        ValueError: there is no compiler, or it refuses; what it made cannot be kept or loaded.
    """
    compiler = find_compiler()
    if compiler is None:
        raise ValueError(
            "its loops are compiled once, and there is no C++ compiler: install one (Debian: g++), or name it by CXX"
        )
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False).stdout
    parts = (*(one.read_text() for one in (SOURCE, *HEADERS)), compiler, version, platform.platform(), _cpu(), *FLAGS)
    name = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
    path = _folder() / f"transformer-{name}.so"
    if not path.exists():
        _compile(compiler, path)
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise ValueError(f"what {compiler} compiled cannot be loaded: {error}") from error


def _folder() -> Path:
    root = os.environ.get("XDG_CACHE_HOME")
    folder = (Path(root) if root else Path.home() / ".cache") / "vanilla_transformer"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"what is compiled is kept in {folder}, which cannot be made ({error.strerror}): name another folder by "
            "XDG_CACHE_HOME"
        ) from None
    return folder


def _cpu() -> str:
    """What -march=native decides by, where Linux tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))


def _compile(compiler: str, path: Path) -> None:
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / path.name
        done = subprocess.run(
            [compiler, *FLAGS, str(SOURCE), "-o", str(made)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise ValueError(f"{compiler} could not compile {SOURCE.name}: {done.stderr.strip()[-500:]}")
        os.replace(made, path)  # whole or not at all, whoever else compiles
