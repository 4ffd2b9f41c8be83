# SPDX-License-Identifier: Apache-2.0
"""Standard input, output and error, of which a shell may have closed any (`<&-`, `>&-`, `2>&-`)."""

import io
import os
import sys


def prepare_streams() -> None:
    """What a program does before anything else.

    A closed number is taken by the null device, or the next file that is opened, weights perhaps, would get it, and
    what a library prints. Messages to a closed standard error are lost, as the user wishes. A terminal that lacks a
    character must not end hours of training.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest free number, which is this one
    if sys.stderr is None:  # `print` would write to standard output instead
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 -- for as long as the process lives
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def check_output_stream() -> None:
    """Raises OSError if standard output is closed, where `print` would say nothing, and nothing would be lost."""
    if sys.stdout is None:
        raise OSError("standard output is closed: send it to a file, or to /dev/null")


def input_stream() -> io.BufferedIOBase:
    """The bytes of standard input.

    Raises:
        OSError: it is closed.
    """
    if sys.stdin is None:
        raise OSError("standard input is closed: give it a file or a pipe")
    return sys.stdin.buffer  # pyright: ignore[reportReturnType] -- typeshed says BinaryIO, which has no class
