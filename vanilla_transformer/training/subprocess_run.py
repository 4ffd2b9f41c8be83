# SPDX-License-Identifier: Apache-2.0
"""A run in a subprocess, so that several runs of one command cannot disturb each other."""

import multiprocessing
import os
import pickle
import signal
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection

STOPS = (signal.SIGINT, signal.SIGTERM)
READY = "ready"


def run_in_subprocess(function: Callable[..., object], *arguments: object) -> None:
    """Call `function(*arguments)` in a new process and wait for its end.

    Accelerate keeps one state for a process: a second run in it would inherit the precision and devices of the first.
    SIGINT and SIGTERM are passed on, and the run decides how it stops.

    Raises:
        BaseException: whatever the function raised, SystemExit included; a note has its traceback.
        KeyboardInterrupt: a signal ended the process before the run could decide.
        RuntimeError: the process ended without a result.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_call_and_send, args=(sender, function, arguments))
    received: list[int] = []

    def pass_on(number: int, _) -> None:
        received.append(number)
        if process.pid is not None:
            os.kill(process.pid, number)

    # The new process inherits that signals are ignored while it imports, which takes seconds; we keep them for it.
    before = {number: signal.signal(number, signal.SIG_IGN) for number in STOPS}
    try:
        process.start()
        for number in STOPS:
            signal.signal(number, pass_on)
        sender.close()  # our copy would hide the end of the other process
        message = receiver.recv()
        if message == READY:
            for number in received:
                os.kill(process.pid or 0, number)
            message = receiver.recv()
    except EOFError:
        process.join()
        if received:
            raise KeyboardInterrupt from None
        raise RuntimeError(
            f"the training process ended with status {process.exitcode} and without a word; was it killed, for memory?"
        ) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    process.join()
    if message is not None:
        raise message


def _call_and_send(sender: Connection, function: Callable[..., object], arguments: tuple) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    sender.send(READY)
    try:
        function(*arguments)
    except BaseException as error:
        traceback_text = traceback.format_exc()
        try:
            error = pickle.loads(pickle.dumps(error))
        except Exception:  # it cannot be pickled, or not be built from its arguments
            error = RuntimeError(f"{type(error).__name__}: {error}")
        error.add_note(f"in a subprocess:\n{traceback_text}")
        sender.send(error)
    else:
        sender.send(None)
