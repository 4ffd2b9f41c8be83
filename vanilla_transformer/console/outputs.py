# SPDX-License-Identifier: Apache-2.0
"""Outputs: a check, before any work starts, that they can be written; text files that exist complete or not at all."""

import gzip
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile


def check_output_file(path: str | Path, option: str, makes_folders: bool = False) -> None:
    """Raise OSError, in one line, if a file cannot be written; the check leaves no file behind and changes none.

    Args:
        option: the user's name for it, for messages.
        makes_folders: whether the program makes missing parent folders.
    """
    path = Path(path)
    with _readable_errors(path, option):
        if path.is_dir():
            raise IsADirectoryError(f"{option} {path} is a folder, not a file; name a file")
        if not path.exists():
            folder = path.resolve().parent  # of a broken link, where its target would be
            if not makes_folders and not folder.exists():
                raise FileNotFoundError(f"{option} {path}: there is no folder {path.parent}; make it first")
            _check_folder(folder)
        elif not os.access(path, os.W_OK):  # opening a pipe or a device may block or have effects
            raise PermissionError(f"{option} {path} cannot be written; choose another place")


def check_output_folder(path: str | Path, option: str) -> None:
    """Raise OSError, in one line, if a folder cannot be made with its parents, or cannot be written to."""
    with _readable_errors(path, option):
        _check_folder(Path(path))


def write_atomically(path: Path, text: str) -> None:
    """Write to a hidden file beside the path, compressed for .gz, then rename it."""
    unfinished, data = path.with_name(f".{path.name}"), text.encode("utf-8")
    unfinished.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
    unfinished.replace(path)


@contextmanager
def _readable_errors(path: str | Path, option: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno is None:  # raised above, and readable already
            raise
        raise type(error)(f"{option} {path} cannot be written ({error.strerror}); choose another place") from error


def _check_folder(folder: Path) -> None:
    """Create an unnamed temporary file in the nearest parent that exists."""
    while not os.path.lexists(folder) and folder != folder.parent:
        folder = folder.parent
    TemporaryFile(dir=folder).close()
