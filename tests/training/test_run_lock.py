# SPDX-License-Identifier: Apache-2.0
import errno
import fcntl
import json
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from vanilla_transformer.training.run_lock import LOCK, lock_for_this_run

HOLD = """
import os, sys
from pathlib import Path
from vanilla_transformer.training.run_lock import lock_for_this_run
lock_for_this_run(Path(sys.argv[1]))
if "fork" not in sys.argv or os.fork() == 0:  # the worker, once it is there, lives on as long as the test wants
    print("locked", flush=True)
sys.stdin.read()
"""


@contextmanager
def another_run(folder: Path, *options: str) -> Iterator[subprocess.Popen]:
    """A process that has locked the folder."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder), *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        encoding="utf-8",
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        yield process
        process.kill()


def is_locked(folder: Path) -> bool:
    with (folder / LOCK).open("a", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def test_lock_file_names_its_process(tmp_path: Path):
    before = datetime.now(UTC).replace(microsecond=0)
    lock_for_this_run(tmp_path)
    holder = json.loads((tmp_path / LOCK).read_text(encoding="utf-8"))
    assert (holder["pid"], holder["host"]) == (os.getpid(), platform.node())
    assert before <= datetime.fromisoformat(holder["since"]) <= datetime.now(UTC)


def test_a_second_run_is_refused_and_the_first_named(tmp_path: Path):
    with another_run(tmp_path) as first:
        for _ in range(2):  # being refused takes nothing from the first
            with pytest.raises(
                ValueError,
                match=f"{tmp_path} is in use by the run of process {first.pid} on {platform.node()} since 2.*wait for",
            ):
                lock_for_this_run(tmp_path)
        assert is_locked(tmp_path)


@pytest.mark.parametrize("options", [[], ["fork"]], ids=["alone", "with a forked worker that lives on"])
def test_lock_of_a_killed_process_is_released(tmp_path: Path, options: list[str]):
    with another_run(tmp_path, *options) as first:
        first.send_signal(signal.SIGKILL)
        first.wait()
        lock_for_this_run(tmp_path)
    assert json.loads((tmp_path / LOCK).read_text(encoding="utf-8"))["pid"] == os.getpid()


def test_a_process_may_run_again_in_the_same_folder(tmp_path: Path):
    for _ in range(2):
        lock_for_this_run(tmp_path)
        assert is_locked(tmp_path)


def test_the_next_run_of_a_process_releases_the_folder_before(tmp_path: Path):
    folders = [tmp_path / name for name in ("first", "second")]
    for folder in folders:
        folder.mkdir()
        lock_for_this_run(folder)
    assert [is_locked(folder) for folder in folders] == [False, True]


def test_a_file_system_without_flock_is_named(tiny_run, monkeypatch):
    """As Lustre without its option `flock`, and NFS without a lock daemon."""

    def flock(file, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(
        ValueError, match=r"training\.output_dir=.*run is on a file system without flock \(No locks"
    ) as found:
        tiny_run.train()
    assert "choose a folder on another one, or mount it with locks" in str(found.value)
    assert "\n" not in str(found.value)


def test_a_holder_that_has_not_yet_written_who_it_is(tmp_path: Path):
    with (tmp_path / LOCK).open("a", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="is in use by another run; wait for its end"):
            lock_for_this_run(tmp_path)
