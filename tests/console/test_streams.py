# SPDX-License-Identifier: Apache-2.0
"""Standard streams that a shell has closed; and lines that are returned as soon as they have arrived."""

import io
import os
import random
import subprocess
import sys
from collections.abc import Iterable, Iterator
from threading import Event, Thread

import pytest

from vanilla_transformer import Translator
from vanilla_transformer.console import streams
from vanilla_transformer.console.streams import windows

CLI = f"{sys.executable} -W ignore -m vanilla_transformer.cli"


def in_a_shell(command: str, data: bytes = b"a b\n") -> subprocess.CompletedProcess:
    return subprocess.run(["bash", "-c", command], input=data, capture_output=True, check=False)


@pytest.mark.parametrize(
    ("closed", "said"), [("<&-", b"standard input is closed"), (">&-", b"standard output is closed")]
)
def test_closed_input_or_output_is_one_line(model_folder, closed: str, said: bytes):
    done = in_a_shell(f"{CLI} translate {model_folder} --quiet {closed}")
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.startswith(b"vanilla-transformer translate: error: " + said)
    assert done.stderr.count(b"\n") == 1


def test_closed_stderr_leaves_the_output_as_it_is(model_folder):
    (expected,) = Translator.from_pretrained(model_folder).translate(["a b"])
    done = in_a_shell(f"{CLI} translate {model_folder} 2>&-")
    assert (done.returncode, done.stdout.decode(), done.stderr) == (0, f"{expected}\n", b"")


@pytest.mark.parametrize("closed", ["2>&-", "2< /dev/null"], ids=["closed", "open for reading alone"])
def test_error_with_closed_stderr_stays_off_the_output(closed: str):
    done = in_a_shell(f"{CLI} evaluate --reference text {closed}")
    assert (done.returncode, done.stdout) == (2, b"")


@pytest.mark.parametrize("command", ["--help", "translate --help"])
@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_help_works_with_closed_streams(command: str, closed: str):
    assert in_a_shell(f"{CLI} {command} {closed}").returncode == 0


@pytest.mark.parametrize("command", ["train nowhere.yaml", "plot positions", "evaluate --hypothesis a --reference a"])
def test_closed_output_is_refused_before_any_work(command: str):
    done = in_a_shell(f"{CLI} {command} >&-")
    assert done.returncode == 1
    assert b"standard output is closed: send it to a file, or to /dev/null" in done.stderr


def test_files_do_not_get_the_descriptors_of_closed_streams():
    code = (
        "from vanilla_transformer.console.streams import prepare_streams; prepare_streams()\n"
        "import os; number = os.open(os.devnull, os.O_RDONLY)\n"
        "print(number, file=open('/dev/fd/9', 'w'))"
    )
    done = in_a_shell(f'{sys.executable} -c "{code}" 9>&1 <&- >&- 2>&-')
    assert int(done.stdout) > 2


WHOLE = b"".join(b"%d %s\n" % (i, b"x" * (i % 97)) for i in range(3000))
TEXTS = {
    "empty": b"",
    "one line": b"a\n",
    "no end": b"a\nb",
    "empty lines": b"\n\na\n\n",
    "carriage returns": b"a\r\nb\rc\n\r",
    "more than a buffer": WHOLE,
    "one long line": b"a" * 300_000,
}


@pytest.fixture
def pipe() -> Iterator[tuple]:
    """Its reading end as a file, its writing end as a file descriptor."""
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
def test_pipe_gives_the_lines_of_a_file(pipe, text: bytes, largest: int):
    reading, writing = pipe
    sizes = iter(lambda: random.randint(1, largest), 0)
    writer = Thread(target=write_and_close, args=(writing, text, sizes))
    writer.start()
    found = [line for window in windows(reading, iter, 7) for line in window]
    writer.join()
    assert found == list(io.BytesIO(text))


def test_line_is_returned_before_the_next_arrives(pipe):
    reading, writing = pipe
    found = windows(reading, iter, 100)
    for line in (b"a\n", b"b\n"):
        os.write(writing, line)
        assert next(found) == [line]
    os.write(writing, b"half ")
    os.write(writing, b"a line\n")
    assert next(found) == [b"half a line\n"]
    os.write(writing, b"no end")
    os.close(writing)
    assert list(found) == [[b"no end"]]


def test_window_holds_the_available_lines_up_to_its_size(pipe, monkeypatch):
    class Arrived:
        def __init__(self, size: int):
            self.lines, self.counts = iter([*range(10), None]), iter([0, 3, 100, 100])

        def put(self, line: bytes | None) -> None:
            pass

        def get(self) -> int | None:
            return next(self.lines)

        def qsize(self) -> int:
            return next(self.counts)

    reading, writing = pipe
    os.close(writing)
    monkeypatch.setattr(streams, "Queue", Arrived)
    assert list(windows(reading, iter, 5)) == [[0], [1, 2, 3, 4], [5, 6, 7, 8, 9]]


def test_file_is_read_in_full_windows(tmp_path):
    path = tmp_path / "lines"
    path.write_bytes(WHOLE)
    with path.open("rb") as file:
        assert [len(window) for window in windows(file, iter, 2048)] == [2048, 952]


def test_reading_ahead_is_bounded(pipe):
    reading, writing = pipe
    read: list[int] = []
    has_read = [Event() for _ in range(20)]

    def decode(lines: Iterable[bytes]) -> Iterator[bytes]:
        for i, event in enumerate(has_read):
            read.append(i)
            event.set()
            yield b"x"

    found = windows(reading, decode, 4)
    taken = len(next(found))
    assert has_read[taken + 4].wait(60)  # and waits for room in the queue
    assert read == list(range(taken + 5))
    assert sum(map(len, found)) == 20 - taken
    os.close(writing)


def test_lines_before_an_error_come_first(pipe):
    def decode(lines: Iterable[bytes]) -> Iterator[bytes]:
        yield from (b"a", b"b")
        raise ValueError("not UTF-8")

    reading, writing = pipe
    found = windows(reading, decode, 1)
    assert [next(found), next(found)] == [[b"a"], [b"b"]]
    with pytest.raises(ValueError, match="not UTF-8"):
        next(found)
    os.close(writing)


def test_unreadable_stream_raises_in_the_reader(tmp_path):
    number = os.open(tmp_path, os.O_RDONLY)  # a folder
    with pytest.raises(IsADirectoryError):
        next(windows(Numbered(number), iter, 10))
    os.close(number)


class Numbered(io.BytesIO):
    def __init__(self, number: int):
        super().__init__()
        self.number = number

    def fileno(self) -> int:
        return self.number
