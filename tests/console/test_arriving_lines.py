# SPDX-License-Identifier: Apache-2.0
"""Lines that have come are returned at once, whatever the stream; none is lost, split or waited for."""

import io
import os
import random
import sys
from collections.abc import Iterator
from threading import Event, Thread

import pytest

from vanilla_transformer.console import arriving_lines
from vanilla_transformer.console.arriving_lines import ArrivingLines, windows

WHOLE = b"".join(b"%d %s\n" % (i, b"x" * (i % 97)) for i in range(3000))
TEXTS = {
    "empty": b"",
    "one line": b"a\n",
    "no end": b"a\nb",
    "empty lines": b"\n\na\n\n",
    "carriage returns": b"a\r\nb\rc\n\r",
    "more than is read at once": WHOLE,
    "one long line": b"a" * 300_000,
}


@pytest.fixture
def pipe() -> Iterator[tuple]:
    """Its reading end as a file, its writing end as a number."""
    reading, writing = os.pipe()
    with open(reading, "rb") as file:
        yield file, writing


def write_and_close(number: int, data: bytes, sizes: Iterator[int]) -> None:
    while data:
        size = next(sizes)
        os.write(number, data[:size])
        data = data[size:]
    os.close(number)


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
@pytest.mark.parametrize("largest", [2**16, 5000], ids=["at once", "in pieces"])
def test_lines_of_a_pipe_are_those_of_a_file(pipe, text: bytes, largest: int):
    reading, writing = pipe
    sizes = iter(lambda: random.randint(1, largest), 0)
    writer = Thread(target=write_and_close, args=(writing, text, sizes))
    writer.start()
    arriving = ArrivingLines(reading, 7)
    found = [line for window in windows(arriving, iter(arriving), 7) for line in window]
    writer.join()
    assert found == list(io.BytesIO(text))


def test_one_line_is_answered_before_the_next_comes(pipe):
    reading, writing = pipe
    arriving = ArrivingLines(reading, 100)
    found = windows(arriving, iter(arriving), 100)
    for line in (b"a\n", b"b\n"):
        os.write(writing, line)
        assert next(found) == [line]
    os.write(writing, b"half ")
    os.write(writing, b"a line\n")
    assert next(found) == [b"half a line\n"]
    os.write(writing, b"no end")
    os.close(writing)
    assert list(found) == [[b"no end"]]


def test_what_has_come_is_one_window_up_to_the_most():
    lines = iter(range(10))

    class Come(ArrivingLines):
        def __init__(self):
            self.counts = iter([0, 3, 100, 100])

        def come(self) -> int:
            return next(self.counts)

    assert list(windows(Come(), lines, 5)) == [[0], [1, 2, 3, 4], [5, 6, 7, 8, 9]]


def test_a_file_is_read_in_whole_windows(tmp_path):
    path = tmp_path / "lines"
    path.write_bytes(WHOLE)
    with path.open("rb") as file:
        arriving = ArrivingLines(file, 2048)
        assert arriving.come() == sys.maxsize
        assert [len(window) for window in windows(arriving, iter(arriving), 2048)] == [2048, 952]


def test_reading_ahead_has_an_end(pipe, monkeypatch):
    reading, writing = pipe
    read: list[int] = []
    has_read = [Event() for _ in range(6)]

    def lines(number: int) -> Iterator[bytes]:
        for i, event in enumerate(has_read):
            read.append(i)
            event.set()
            yield b"x"

    monkeypatch.setattr(arriving_lines, "_lines_of", lines)
    arriving = ArrivingLines(reading, 4)
    assert has_read[4].wait(60)  # and has no room for it
    assert read == [0, 1, 2, 3, 4]
    assert next(arriving) == b"x"
    assert has_read[5].wait(60)
    assert len(list(arriving)) == 5
    os.close(writing)


def test_a_stream_that_cannot_be_read_is_an_error_of_the_reader(tmp_path):
    number = os.open(tmp_path, os.O_RDONLY)  # a folder
    with pytest.raises(IsADirectoryError):
        next(ArrivingLines(Numbered(number), 10))
    os.close(number)


class Numbered(io.BytesIO):
    def __init__(self, number: int):
        super().__init__()
        self.number = number

    def fileno(self) -> int:
        return self.number
