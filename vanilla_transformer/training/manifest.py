# SPDX-License-Identifier: Apache-2.0
"""Manifests: the files of a folder with their sizes and hashes, by which damage is found."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"  # {"config.json": {"size": bytes, "sha256": hexadecimal}, …}; written last


def write_manifest(folder: Path) -> None:
    """List the files of `folder` and of its folders, and flush all of them to the disk."""
    files = {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": _sha256(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    (folder / MANIFEST).write_text(json.dumps(files, indent=2) + "\n", encoding="utf-8")
    sync_folder(folder)


def sync_folder(folder: Path) -> None:
    """Flush `folder`, its files and its folders to the disk."""
    for path in [*folder.rglob("*"), folder]:
        sync(path)


def sync(path: Path) -> None:
    """Flush a file's data or a folder's names to the disk: a rename alone may overtake the data."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def find_damage(folder: Path, hashes: bool = True) -> str | None:
    """The damage of the first file that differs from the manifest; `None` if none does.

    Args:
        hashes: compare hashes, which reads every byte, and not only sizes.
    """
    name = MANIFEST
    try:
        for name, expected in _read_manifest(folder).items():
            path = folder / name
            if not path.is_file():
                return f"{name} is missing"
            size = path.stat().st_size
            if size != expected["size"]:
                return f"{name} has {size} bytes, {MANIFEST} says {expected['size']}"
            if hashes and _sha256(path) != expected["sha256"]:
                return f"{name} has another sha256 than {MANIFEST} says"
    except _Unreadable as error:
        return str(error)
    except OSError as error:
        return f"{name} cannot be read ({error.strerror})"
    return None


class _Unreadable(Exception):
    pass


def _read_manifest(folder: Path) -> dict[str, dict[str, Any]]:
    path = folder / MANIFEST
    if not path.is_file():
        raise _Unreadable(f"{MANIFEST} is missing")
    try:
        files = json.loads(path.read_bytes())
    except ValueError as error:  # of JSON or UTF-8
        raise _Unreadable(f"{MANIFEST} is no JSON ({' '.join(str(error).split())})") from error
    entries = [*files.values()] if isinstance(files, dict) else []
    if not entries or not all(isinstance(entry, dict) and entry.keys() == {"size", "sha256"} for entry in entries):
        raise _Unreadable(f"{MANIFEST} does not list files with their size and sha256")
    for name in files:
        if not (folder / name).resolve().is_relative_to(folder.resolve()):
            raise _Unreadable(f"{MANIFEST} names {name!r}, which is not a file of the folder")
    return files


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
