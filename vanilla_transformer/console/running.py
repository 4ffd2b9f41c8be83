# SPDX-License-Identifier: Apache-2.0
"""Running a program: an error that the user can mend is one line on standard error, and an exit status."""

import errno
import gc
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from vanilla_transformer.console.arguments import UsageError
from vanilla_transformer.console.extras import explain_missing


def run_program(work: Callable[[], int | None], program: str, *, extra: str | None = None, debug: bool = False) -> int:
    """Run a program after `prepare_streams`.

    Args:
        program: its name, with which messages begin; the last word is the command.
        extra: of this package, which installs what the program needs.
        debug: raise errors with their traceback.

    Returns:
        The exit status: that of `work`, 1 after an error that the user can mend, or 2 after wrong usage.
    """
    try:
        _check_output_stream()
        return work() or 0
    except BrokenPipeError:  # the reader of the output has closed it; without this, Python complains again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # as a shell reports SIGPIPE
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        if debug:
            raise
        message = " ".join(_message(error, program.split()[-1], extra).split())
        print(f"{program}: error: {message or type(error).__name__}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        return 130


def _check_output_stream() -> None:
    if sys.stdout is None:
        raise OSError("standard output is closed: send it to a file, or to /dev/null")


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """For the imports of a program, which saves a quarter of the time that torch and transformers take.

    They make half a million objects that live until the process ends. Python would search them for cycles again and
    again, later too, and when it ends.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.freeze()


def _message(error: Exception, command: str, extra: str | None) -> str:
    if isinstance(error, ModuleNotFoundError):
        return explain_missing(error, command, extra) or str(error)
    if isinstance(error, OSError) and error.filename is not None and (variable := _unwritable_cache(error)):
        return f"{error}; Hugging Face's libraries cache there: set {variable} to a folder that can be written"
    return str(error)


def _unwritable_cache(error: OSError) -> str | None:
    """The variable that sets the cache of Hugging Face's libraries, if the error shows that it cannot be written."""
    from huggingface_hub import constants  # not for `--help`

    path = Path(str(error.filename))
    cannot_be_made = error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EEXIST)
    is_denied = error.errno in (errno.EACCES, errno.EPERM, errno.EROFS)
    caches = {"HF_DATASETS_CACHE": os.environ.get("HF_DATASETS_CACHE"), "HF_HOME": constants.HF_HOME}
    for variable, cache in caches.items():
        if not cache:
            continue
        is_on_the_way, is_inside = Path(cache).is_relative_to(path), path.is_relative_to(cache)
        if (cannot_be_made and is_on_the_way) or (is_denied and (is_on_the_way or is_inside)):
            return variable
    return None
