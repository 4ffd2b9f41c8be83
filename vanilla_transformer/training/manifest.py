# SPDX-License-Identifier: Apache-2.0
"""Manifests: the files of a folder with their sizes and hashes, by which damage is found."""

import hashlib
import json
import os
from pathlib import Path

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
    name, root = MANIFEST, folder.resolve()
    not_a_list = f"{MANIFEST} does not list files with their size and sha256"
    try:
        files = json.loads((folder / MANIFEST).read_bytes())
        if not files or not isinstance(files, dict):
            return not_a_list
        for name, entry in files.items():
            path, expected_size, expected_hash = folder / name, entry["size"], entry["sha256"]
            if not path.resolve().is_relative_to(root):
                return f"{MANIFEST} names {name!r}, which is not a file of the folder"
            size = path.stat().st_size
            if size != expected_size:
                return f"{name} has {size} bytes, {MANIFEST} says {expected_size}"
            if hashes and _sha256(path) != expected_hash:
                return f"{name} has another sha256 than {MANIFEST} says"
    except FileNotFoundError:
        return f"{name} is missing"
    except OSError as error:
        return f"{name} cannot be read ({error.strerror})"
    except ValueError as error:  # of JSON or UTF-8
        return f"{MANIFEST} is no JSON ({' '.join(str(error).split())})"
    except (KeyError, TypeError):
        return not_a_list
    return None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
