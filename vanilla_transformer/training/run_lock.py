# SPDX-License-Identifier: Apache-2.0
"""One run at a time in a folder: a lock that the system releases when its process ends, however it ends."""

import fcntl
import json
import os
import platform
import time
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

SIGNING_SECONDS = 0.5  # in which the process that took the lock writes who it is
LOCK = ".lock"  # in the run's output_dir; the file stays, and means nothing by itself

# This process's lock. Accelerate keeps one state for a process, so a process has one run at a time: when it claims
# another folder, its run before has ended.
_held = ExitStack()
# A worker that is forked inherits the open file, and would hold the lock when the run itself is gone.
os.register_at_fork(after_in_child=_held.close)


def lock_for_this_run(output_dir: Path) -> None:
    """Take the folder's lock until this process ends or takes another; only the main one of several processes calls it.

    Raises:
        ValueError: a run in another process has the lock, and the message names that process; or the file system has
            no locks.
    """
    _held.close()
    file = _held.enter_context((output_dir / LOCK).open("a+", encoding="utf-8"))  # does not empty the other run's file
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        time.sleep(SIGNING_SECONDS)
        file.seek(0)
        holder = _describe(file.read())
        _held.close()
        raise ValueError(
            f"{output_dir} is in use by {holder}; wait for its end, or choose another training.output_dir"
        ) from error
    except OSError as error:
        _held.close()
        raise ValueError(
            f"training.output_dir={output_dir} is on a file system without flock ({error.strerror}), so that two runs "
            "could write there at once; choose a folder on another one, or mount it with locks (Lustre: -o flock)"
        ) from error
    file.truncate(0)
    since = datetime.now(UTC).isoformat(timespec="seconds")
    json.dump({"pid": os.getpid(), "host": platform.node(), "since": since}, file)
    file.flush()


def _describe(content: str) -> str:
    try:
        holder = json.loads(content)
    except json.JSONDecodeError:  # not written yet, on a busy machine
        return "another run"
    return f"the run of process {holder['pid']} on {holder['host']} since {holder['since']}"
