# SPDX-License-Identifier: Apache-2.0
"""A run in a process of its own, so that several runs of one command cannot disturb each other."""

import multiprocessing
import os
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection


def run_in_own_process(function: Callable[..., object], *arguments: object) -> None:
    """Call `function(*arguments)` in a new process and wait for its end.

    Accelerate keeps one state for a process: a second run in it would inherit the precision and devices of the first.
    Ctrl-C reaches both processes, and SIGTERM is passed on: the run decides how it stops.

    Raises:
        BaseException: what the function raised, SystemExit included.
        RuntimeError: the process ended without a word.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_call_and_tell, args=(sender, function, arguments))
    process.start()
    sender.close()  # this process's copy, or the end of the other one would go unnoticed

    def pass_on(number: int, _) -> None:
        assert process.pid is not None
        os.kill(process.pid, number)

    before = {signal.SIGTERM: signal.signal(signal.SIGTERM, pass_on)}
    before[signal.SIGINT] = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        error = receiver.recv()
    except EOFError:
        process.join()
        raise RuntimeError(
            f"the training process ended with status {process.exitcode} and without a word; was it killed, for memory?"
        ) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    process.join()
    if error is not None:
        raise error


def _call_and_tell(sender: Connection, function: Callable[..., object], arguments: tuple) -> None:
    try:
        function(*arguments)
    except BaseException as error:
        sender.send(error)
    else:
        sender.send(None)
