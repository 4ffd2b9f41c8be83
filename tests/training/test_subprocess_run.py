# SPDX-License-Identifier: Apache-2.0
import os
import signal
import threading
import time

import pytest

from vanilla_transformer.training.subprocess_run import run_in_subprocess


def write_pid(path: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(str(os.getpid()))


def sleep_and_write_pid(path: str) -> None:
    time.sleep(5)  # interrupted
    write_pid(path)


def refuse(value: int) -> None:
    raise ValueError(f"{value} is not allowed")


def leave(status: int) -> None:
    raise SystemExit(status)


def die() -> None:
    os._exit(9)


def wait_for_sigterm(path: str) -> None:
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    os.kill(os.getppid(), signal.SIGTERM)  # as a scheduler would, to the process that it started
    assert stopped.wait(timeout=60)
    write_pid(path)
    raise SystemExit(3)


def test_subprocess_has_another_pid(tmp_path):
    run_in_subprocess(write_pid, str(tmp_path / "pid"))
    assert int((tmp_path / "pid").read_text(encoding="utf-8")) != os.getpid()


def test_errors_of_the_subprocess_are_raised():
    with pytest.raises(ValueError, match="7 is not allowed"):
        run_in_subprocess(refuse, 7)


def test_exit_status_of_the_subprocess_is_raised():
    with pytest.raises(SystemExit) as error:
        run_in_subprocess(leave, 3)
    assert error.value.code == 3


def test_a_subprocess_that_dies_is_an_error():
    with pytest.raises(RuntimeError, match="ended with status 9 and without a word"):
        run_in_subprocess(die)


def test_a_signal_during_the_subprocess_imports_is_delivered_later(tmp_path):
    before = signal.getsignal(signal.SIGINT)

    def interrupt_as_soon_as_it_is_passed_on() -> None:  # long before this module is imported there
        while signal.getsignal(signal.SIGINT) in (before, signal.SIG_IGN):
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt_as_soon_as_it_is_passed_on).start()
    with pytest.raises(KeyboardInterrupt):
        run_in_subprocess(sleep_and_write_pid, str(tmp_path / "pid"))
    assert not (tmp_path / "pid").exists()


def test_errors_of_the_subprocess_have_its_traceback():
    with pytest.raises(ValueError, match="7 is not allowed") as error:
        run_in_subprocess(refuse, 7)
    assert "in refuse" in error.value.__notes__[0]


def test_sigterm_is_passed_on(tmp_path):
    with pytest.raises(SystemExit):
        run_in_subprocess(wait_for_sigterm, str(tmp_path / "pid"))
    assert (tmp_path / "pid").exists()
