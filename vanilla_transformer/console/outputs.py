# SPDX-License-Identifier: Apache-2.0
"""Checks, before any work starts, that an output can be written."""

import os
from pathlib import Path
from tempfile import TemporaryFile


def check_output_file(path: str | Path, option: str, makes_folders: bool = False) -> None:
    """Raise OSError if `path` cannot be written; the check leaves no file behind and changes none.

    Args:
        option: what the user calls it, for messages.
        makes_folders: whether the program makes the folders that are missing on the way.

    Raises:
        OSError: it cannot be written: one line with the reason.
    """
    path = Path(path)
    try:
        if path.is_dir():
            raise IsADirectoryError(f"{option} {path} is a folder, not a file; name a file")
        if not path.exists():
            folder = path.resolve().parent  # of a link that leads nowhere, where it leads
            if not makes_folders and not folder.exists():
                raise FileNotFoundError(f"{option} {path}: there is no folder {path.parent}; make it first")
            _check_folder(folder)
        elif path.is_file():
            with path.open("ab"):
                pass
        elif not os.access(path, os.W_OK):  # opening a pipe or a device may block or have effects
            raise PermissionError(f"{option} {path} cannot be written; choose another place")
    except OSError as error:
        if error.errno is None:  # one of the above
            raise
        raise type(error)(f"{option} {path} cannot be written ({error.strerror}); choose another place") from error


def check_output_folder(path: str | Path, option: str) -> None:
    """The same for a folder that the program makes, with those on the way to it.

    Raises:
        OSError: it cannot be made, or cannot be written to.
    """
    try:
        _check_folder(Path(path))
    except OSError as error:
        raise type(error)(f"{option} {path} cannot be written ({error.strerror}); choose another place") from error


def _check_folder(folder: Path) -> None:
    """Creates an unnamed temporary file in the nearest folder that exists."""
    while not os.path.lexists(folder) and folder != folder.parent:
        folder = folder.parent
    with TemporaryFile(dir=folder):
        pass
