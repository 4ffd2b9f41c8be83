# SPDX-License-Identifier: Apache-2.0
"""Standard input, output and error, of which a shell may have closed any (`<&-`, `>&-`, `2>&-`)."""

import errno
import io
import os
import sys
from typing import BinaryIO


def prepare_streams() -> None:
    """Open the standard streams that are closed; a program calls this before anything else.

    A closed number is taken by the null device. Otherwise the next file that is opened would get it, weights perhaps,
    and with it what a library prints. Messages to a closed standard error are lost, as the user wishes. A terminal that
    lacks a character must not end hours of training.
    """
    is_open = [_is_open(number) for number in (0, 1, 2)]
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        if not is_open[number] and null != number:
            os.dup2(null, number)
    if null > 2:
        os.close(null)
    else:
        os.set_inheritable(null, True)  # as the others are
    if not is_open[1]:
        sys.stdout = None
    if sys.stderr is None:  # `print` would write to standard output instead
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 -- for as long as the process lives
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _is_open(number: int) -> bool:
    """Outputs have to be open for writing: a script's interpreter may have got the number for the script."""
    try:
        os.fstat(number) if number == 0 else os.write(number, b"")
    except OSError as error:
        return error.errno != errno.EBADF
    return True


def check_output_stream() -> None:
    """Raises OSError if standard output is closed: what is printed would be lost without a word."""
    if sys.stdout is None:
        raise OSError("standard output is closed: send it to a file, or to /dev/null")


def input_stream() -> BinaryIO:
    """The bytes of standard input.

    Raises:
        OSError: it is closed.
    """
    if sys.stdin is None:
        raise OSError("standard input is closed: give it a file or a pipe")
    return sys.stdin.buffer
