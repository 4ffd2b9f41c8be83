# SPDX-License-Identifier: Apache-2.0
"""Whether an output can be written, asked before the work whose result it is to hold."""

import os
from pathlib import Path
from tempfile import TemporaryFile


def check_output_file(path: str | Path, option: str, makes_folders: bool = False) -> None:
    """Nothing is left of the check, and what is at `path` remains as it is.

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
            if not makes_folders and not path.parent.exists():
                raise FileNotFoundError(f"{option} {path}: there is no folder {path.parent}; make it first")
            _check_folder(path.parent)
        elif path.is_file():
            with path.open("ab"):
                pass
        elif not os.access(path, os.W_OK):  # a pipe or a device, which to open is to begin with
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
    """By a file without a name in the nearest folder that exists."""
    while not os.path.lexists(folder) and folder != folder.parent:
        folder = folder.parent
    with TemporaryFile(dir=folder):
        pass
