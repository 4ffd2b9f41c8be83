# SPDX-License-Identifier: Apache-2.0
"""Lines of a file or a pipe, and how many of them have come already."""

import io
import os
import stat
import sys
from collections.abc import Iterator
from itertools import islice
from queue import Queue
from threading import Thread
from typing import BinaryIO, TypeVar

CHUNK = 2**16  # bytes that are read at once

Line = TypeVar("Line")


class ArrivingLines:
    """An iterator of the lines of a stream, each with its end.

    A file is read as Python does it. A pipe or a terminal is read on a thread, so that the number of waiting lines is
    known; Windows offers no other way. It reads the file descriptor: a blocked read would hold the lock of the buffer.

    Args:
        most: lines that are read ahead.

    Raises:
        OSError: while iterating: the stream cannot be read.
    """

    def __init__(self, stream: BinaryIO, most: int):
        self._waiting: Queue[bytes | OSError | None] = Queue(most)
        self._is_file = _is_file(stream)
        self._lines = iter(stream) if self._is_file else iter(self._next_from_thread, None)
        if not self._is_file:
            Thread(target=self._read, args=(stream.fileno(),), daemon=True).start()

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        return next(self._lines)

    def come(self) -> int:
        """How many lines can be had without waiting; of a file, all."""
        return sys.maxsize if self._is_file else self._waiting.qsize()

    def _next_from_thread(self) -> bytes | None:
        line = self._waiting.get()
        if isinstance(line, OSError):
            raise line
        return line

    def _read(self, number: int) -> None:
        try:
            for line in _lines_of(number):
                self._waiting.put(line)
        except OSError as error:
            self._waiting.put(error)
        self._waiting.put(None)


def _is_file(stream: BinaryIO) -> bool:
    try:
        return stat.S_ISREG(os.fstat(stream.fileno()).st_mode)
    except io.UnsupportedOperation:  # bytes in memory
        return True


def _lines_of(number: int) -> Iterator[bytes]:
    parts: list[bytes] = []  # of a line whose end has not come
    while chunk := os.read(number, CHUNK):
        *ends, rest = chunk.split(b"\n")  # not `splitlines`, for which a carriage return ends a line
        for end in ends:
            yield b"".join([*parts, end, b"\n"])
            parts = []
        if rest:
            parts.append(rest)
    if parts:
        yield b"".join(parts)


def windows(arriving: ArrivingLines, lines: Iterator[Line], most: int) -> Iterator[list[Line]]:
    """Yields lists of the lines that have arrived, at least one and at most `most`.

    Args:
        lines: one for each of `arriving`, which it reads.
    """
    for first in lines:
        yield [first, *islice(lines, min(most - 1, arriving.come()))]
