# SPDX-License-Identifier: Apache-2.0
"""Running a program: every error that a user can mend is one line on standard error, and an exit status."""

import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path

from vanilla_transformer.console.extras import explain_missing
from vanilla_transformer.console.streams import check_output_stream
from vanilla_transformer.console.usage import UsageError


def run_program(work: Callable[[], int | None], program: str, *, extra: str | None = None, debug: bool = False) -> int:
    """Do the work of a program whose streams are prepared.

    Args:
        program: what messages begin with; its last word is the command that lacks a module.
        extra: of this package, which brings what the program needs.
        debug: errors pass, with their traceback.

    Returns:
        The exit status: that of `work`; 1 after an error that the user can mend, or 2 after wrong usage.
    """
    try:
        check_output_stream()
        return work() or 0
    except BrokenPipeError:  # whoever read the output has had enough; Python would complain once more at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # as a shell reports SIGPIPE
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        if debug:
            raise
        message = _message(error, program.split()[-1], extra)
        print(f"{program}: error: {' '.join(message.split()) or type(error).__name__}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        return 130


def _message(error: Exception, name: str, extra: str | None) -> str:
    if isinstance(error, ModuleNotFoundError):
        return explain_missing(error, name, extra) or str(error)
    if isinstance(error, OSError) and error.filename is not None:
        variable = _cache_at(Path(str(error.filename)), error.errno)
        if variable is not None:
            return f"{error}; Hugging Face's libraries cache there: set {variable} to a folder that can be written"
    return str(error)


def _cache_at(path: Path, number: int | None) -> str | None:
    """The environment variable that sets the cache of Hugging Face's libraries, if that cannot be written at `path`.

    Args:
        number: of the operating system's error.
    """
    from huggingface_hub import constants  # not for `--help`

    caches = {"HF_DATASETS_CACHE": os.environ.get("HF_DATASETS_CACHE"), "HF_HOME": constants.HF_HOME}
    for variable, cache in caches.items():
        if not cache:
            continue
        cannot_be_made = number in (errno.ENOENT, errno.ENOTDIR, errno.EEXIST) and Path(cache).is_relative_to(path)
        is_not_ours = number in (errno.EACCES, errno.EPERM, errno.EROFS)
        if cannot_be_made or (is_not_ours and (path.is_relative_to(cache) or Path(cache).is_relative_to(path))):
            return variable
    return None
