# SPDX-License-Identifier: Apache-2.0
"""Standard input, output and error, of which a shell may have closed any (`<&-`, `>&-`, `2>&-`)."""

import errno
import io
import os
import stat
import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from queue import Queue
from threading import Thread
from typing import BinaryIO, TypeVar

Line = TypeVar("Line")


def prepare_streams() -> None:
    """Replace standard streams that are closed; a program calls this before anything else.

    The null device takes a closed file descriptor: otherwise the next file that is opened would get it, weights
    perhaps, and the messages of a library with it. A closed standard error loses its messages, as the user
    wishes. A character that the terminal lacks is replaced, because it must not end hours of training.
    """
    closed = [descriptor for descriptor in (0, 1, 2) if not _is_open(descriptor)]
    null = os.open(os.devnull, os.O_RDWR)  # takes the first descriptor that is closed
    os.set_inheritable(null, True)
    for descriptor in closed:
        os.dup2(null, descriptor)
    if null > 2:
        os.close(null)
    if 1 in closed:
        sys.stdout = None
    if sys.stderr is None:  # `print` would write to standard output instead
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 -- for as long as the process lives
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _is_open(descriptor: int) -> bool:
    """Outputs must be open for writing: the descriptor may belong to the script that the interpreter reads."""
    try:
        os.fstat(descriptor) if descriptor == 0 else os.write(descriptor, b"")
    except OSError as error:
        return error.errno != errno.EBADF
    return True


def windows(stream: BinaryIO, decode: Callable[[Iterable[bytes]], Iterator[Line]], size: int) -> Iterator[list[Line]]:
    """Yield lists of the lines that have arrived, at least one and at most `size`; all lines of a file are there.

    A pipe or a terminal is read on a thread, because Windows offers no other way to know what has arrived. It reads
    `size` lines ahead.

    Args:
        decode: makes lines of the stream's bytes.

    Raises:
        OSError: while iterating: the stream cannot be read.
        ValueError: while iterating: `decode` raises it.
    """
    if _is_file(stream):
        lines = decode(stream)
        while window := list(islice(lines, size)):
            yield window
        return
    arrived: Queue[Line | Exception | None] = Queue(size)
    # A descriptor of its own: the stream's may be closed, and its number given to another file, during a blocked read.
    Thread(target=_read, args=(os.dup(stream.fileno()), decode, arrived), daemon=True).start()
    lines = _taken(arrived)
    for first in lines:
        yield [first, *islice(lines, min(size - 1, arrived.qsize()))]


def _is_file(stream: BinaryIO) -> bool:
    try:
        return stat.S_ISREG(os.fstat(stream.fileno()).st_mode)
    except io.UnsupportedOperation:  # bytes in memory
        return True


def _read(descriptor: int, decode: Callable[[Iterable[bytes]], Iterator], arrived: Queue) -> None:
    try:
        # A buffer of its own: at exit Python needs the lock of standard input's, which a blocked read would hold.
        with open(descriptor, "rb") as file:
            for line in decode(file):
                arrived.put(line)
    except (OSError, ValueError) as error:
        arrived.put(error)
    arrived.put(None)


def _taken(arrived: Queue) -> Iterator:
    while (line := arrived.get()) is not None:
        if isinstance(line, Exception):
            raise line
        yield line
