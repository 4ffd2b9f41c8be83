# SPDX-License-Identifier: Apache-2.0
"""transformers.js and the onnxruntime of browsers, as npm's packages have them: no copy lies in this package."""

import json
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

PACKAGE, VERSION = "@huggingface/transformers", "4.3.2"
RUNTIME = "onnxruntime-web"  # PACKAGE's dependencies name its version
FILES = {  # file in a folder node_modules → its name beside the page
    f"{PACKAGE}/dist/transformers.min.js": "transformers.min.js",
    f"{PACKAGE}/LICENSE": "LICENSE-transformers.js",
    f"{RUNTIME}/dist/ort-wasm-simd-threaded.mjs": "ort-wasm-simd-threaded.mjs",
    f"{RUNTIME}/dist/ort-wasm-simd-threaded.wasm": "ort-wasm-simd-threaded.wasm",
    f"{RUNTIME}/README.md": "README-onnxruntime-web.md",  # names its license, MIT
}


@contextmanager
def node_modules(library: str | None) -> Iterator[Path]:
    """A folder that has both packages: `library`, or one that npm fills and that exists within the context.

    Args:
        library: a folder node_modules, or the folder in which `npm install` has made it.

    Raises:
        FileNotFoundError: npm is not installed; `library` lacks a file.
        OSError: npm cannot download a package.
        ValueError: `library` has another version.
    """
    if library is not None:
        inner = Path(library, "node_modules")
        yield _checked(inner if inner.is_dir() else Path(library))
        return
    if (npm := shutil.which("npm")) is None:
        raise FileNotFoundError(
            "npm is not installed: install Node.js, or name a folder of `npm install "
            f"{PACKAGE}@{VERSION}` with --library"
        )
    with TemporaryDirectory(prefix="vanilla-transformer-npm-") as name:
        modules = Path(name)
        _download(npm, PACKAGE, VERSION, modules)
        _download(npm, RUNTIME, _runtime_version(modules), modules)
        yield _checked(modules)


def copy_library(modules: Path, folder: Path) -> None:
    """Copy the files that a page loads, and the licenses, into a new folder."""
    folder.mkdir()
    for source, name in FILES.items():
        shutil.copyfile(modules / source, folder / name)


def _download(npm: str, package: str, version: str, modules: Path) -> None:
    """Unpack a package into its place in `modules`: npm downloads and checks it, and runs none of its scripts."""
    with TemporaryDirectory(dir=modules) as name:
        options = ["--pack-destination", name, "--ignore-scripts", "--prefer-offline"]
        command = [npm, "pack", f"{package}@{version}", *options]
        done = subprocess.run(command, capture_output=True, encoding="utf-8", cwd=name)
        if done.returncode:
            said = "; ".join(done.stderr.splitlines()[:3])
            raise OSError(f"npm cannot download {package}@{version}: {said}; --library takes files that are here")
        [archive] = Path(name).glob("*.tgz")
        with tarfile.open(archive, encoding="utf-8") as packed:
            packed.extractall(name, filter="data")
        (modules / package).parent.mkdir(exist_ok=True)
        Path(name, "package").rename(modules / package)


def _checked(modules: Path) -> Path:
    """Return the folder if it has all files in the right versions; raises as `node_modules` does."""
    for file in [f"{PACKAGE}/package.json", f"{RUNTIME}/package.json", *FILES]:
        if not (modules / file).is_file():
            raise FileNotFoundError(
                f"--library: {modules / file} is missing; `npm install {PACKAGE}@{VERSION}` writes it"
            )
    for package, version in ((PACKAGE, VERSION), (RUNTIME, _runtime_version(modules))):
        if (found := _package(modules, package)["version"]) != version:
            raise ValueError(f"--library: {package} is version {found} there; the page is written for {version}")
    return modules


def _runtime_version(modules: Path) -> str:
    return _package(modules, PACKAGE)["dependencies"][RUNTIME]


def _package(modules: Path, package: str) -> dict[str, Any]:
    return json.loads((modules / package / "package.json").read_text(encoding="utf-8"))
