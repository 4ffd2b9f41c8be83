# SPDX-License-Identifier: Apache-2.0
"""The library from a folder, and from npm: a program of this test that packs the folder, or fails."""

import sys
import tarfile
from pathlib import Path

import pytest

from tests.exporting.node_modules import write_node_modules
from vanilla_transformer.exporting.browser_library import FILES, PACKAGE, RUNTIME, VERSION, copy_library, node_modules

NPM = """\
#!{python}
import shutil, sys
(verb, spec, destination) = sys.argv[1], sys.argv[2], sys.argv[sys.argv.index("--pack-destination") + 1]
known = {known!r}
if verb != "pack" or spec not in known:
    sys.exit("npm error code ETARGET\\nnpm error notarget No matching version found for " + spec)
shutil.copy(known[spec], destination)
"""


@pytest.fixture
def modules(tmp_path) -> Path:
    return write_node_modules(tmp_path / "here" / "node_modules")


@pytest.mark.parametrize("given", [".", "node_modules"])
def test_the_library_from_a_folder(modules, tmp_path, given):
    with node_modules(str(modules.parent / given)) as found:
        copy_library(found, tmp_path / "library")
    copied = {path.name: path.read_text(encoding="utf-8") for path in (tmp_path / "library").iterdir()}
    assert copied == {name: file for file, name in FILES.items()}


def install_npm(folder: Path, known: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir()
    (folder / "npm").write_text(NPM.format(python=sys.executable, known=known), encoding="utf-8")
    (folder / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


def test_the_library_from_npm(modules, tmp_path, monkeypatch):
    archives = {}
    for package, version in ((PACKAGE, VERSION), (RUNTIME, "1.0")):
        archive = tmp_path / f"{version}.tgz"
        with tarfile.open(archive, "w:gz", encoding="utf-8") as packed:
            packed.add(modules / package, "package")
        archives[f"{package}@{version}"] = str(archive)
    install_npm(tmp_path / "bin", archives, monkeypatch)
    with node_modules(None) as found:
        assert found != modules
        copy_library(found, tmp_path / "library")
    assert not found.exists()
    assert {path.name for path in (tmp_path / "library").iterdir()} == set(FILES.values())


def test_npm_that_fails_and_npm_that_is_missing(tmp_path, monkeypatch):
    install_npm(tmp_path / "bin", {}, monkeypatch)
    with pytest.raises(OSError, match=f"cannot download {PACKAGE}@{VERSION}: .*No matching version.*; --library"):
        node_modules(None).__enter__()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"npm is not installed: install Node.js, or name .* --library"):
        node_modules(None).__enter__()


@pytest.mark.parametrize(
    ("versions", "said"),
    [
        ({"version": "3.0.0"}, f"{PACKAGE} is version 3.0.0 there; the page is written for {VERSION}"),
        ({"runtime": "1.2"}, f"{RUNTIME} is version 1.0 there; the page is written for 1.2"),
    ],
)
def test_other_versions_are_refused(tmp_path, versions, said):
    write_node_modules(tmp_path, **versions)
    with pytest.raises(ValueError, match=said):
        node_modules(str(tmp_path)).__enter__()


def test_a_missing_file_is_named(modules):
    (modules / RUNTIME / "dist" / "ort-wasm-simd-threaded.wasm").unlink()
    with pytest.raises(FileNotFoundError, match=r"ort-wasm-simd-threaded.wasm is missing; `npm install"):
        node_modules(str(modules)).__enter__()
