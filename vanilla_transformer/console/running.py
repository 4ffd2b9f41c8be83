# SPDX-License-Identifier: Apache-2.0
"""Running a program: every error that a user can mend is one line on standard error, and an exit status."""

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
    if isinstance(error, OSError) and error.filename is not None and _is_on_the_way_to_cache(Path(str(error.filename))):
        return f"{error}; this is where Hugging Face's libraries cache: set HF_HOME to a folder that can be written"
    return str(error)


def _is_on_the_way_to_cache(path: Path) -> bool:
    """Whether the path lies in the caches of Hugging Face's libraries, or they in it."""
    from huggingface_hub import constants  # not for `--help`

    caches = [Path(constants.HF_HOME)]
    if "HF_DATASETS_CACHE" in os.environ:
        caches.append(Path(os.environ["HF_DATASETS_CACHE"]))
    return any(path.is_relative_to(cache) or cache.is_relative_to(path) for cache in caches)
