# SPDX-License-Identifier: Apache-2.0
"""The real client in a process of its own: it reads its environment once, when it is imported.

Nothing of the client is replaced. Its waits between two tries are cut short, and no other machine can be reached.
"""

import io
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

WRITE, READ, OTHER = "hf_ofAnnToWrite", "hf_ofAnnToRead", "hf_ofBob"  # tokens
USERS = {WRITE: ("ann", True), READ: ("ann", False), OTHER: ("bob", True)}


def environment(endpoint: str, home: Path, **more: str) -> dict[str, str]:
    """For a process that knows of no other Hub, user or cache."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    return kept | {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_XET_CLIENT_RETRY_BASE_DELAY": "10ms",
        "HF_XET_TELEMETRY_ENABLED": "false",
        "DISABLE_SAFETENSORS_CONVERSION": "1",
        "NO_PROXY": "127.0.0.1",
        "OMP_NUM_THREADS": "1",
        **more,
    }


class HubClient:
    """Call it with a function and its arguments, to be run in its process."""

    def __init__(self, endpoint: str, home: Path, **more: str):
        self.home = home
        self._process = ProcessPoolExecutor(
            1, mp_context=get_context("spawn"), initializer=_prepare, initargs=(environment(endpoint, home, **more),)
        )

    def __call__(self, function: Callable, *args: Any, as_user: str | None = WRITE, **kwargs: Any) -> Any:
        """`as_user` is a token, found in HF_TOKEN; `None`: nobody's."""
        return self._process.submit(_call, function, args, kwargs, as_user).result(timeout=300)

    def close(self) -> None:
        self._process.shutdown()


def _prepare(environment: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    sleep = time.sleep
    time.sleep = lambda seconds: sleep(min(seconds, 0.01))
    sys.addaudithook(_refuse_other_machines)


def _refuse_other_machines(event: str, arguments: tuple) -> None:
    if event == "socket.connect" and isinstance(arguments[1], tuple) and arguments[1][0] not in ("127.0.0.1", "::1"):
        raise RuntimeError(f"a test tried to connect to {arguments[1]}: tests are offline")


def _call(function: Callable, args: tuple, kwargs: dict[str, Any], as_user: str | None) -> Any:
    os.environ.pop("HF_TOKEN", None)
    if as_user is not None:
        os.environ["HF_TOKEN"] = as_user
    return function(*args, **kwargs)


@dataclass(frozen=True)
class Ended:
    status: int
    out: str
    err: str


def command(*arguments: str) -> Ended:
    """`vanilla-transformer` with these arguments."""
    from vanilla_transformer.cli import main

    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        status = main(list(arguments))
    return Ended(status, out.getvalue(), err.getvalue())


def api(method: str, *args: Any, **kwargs: Any) -> Any:
    """A method of huggingface_hub's HfApi."""
    from huggingface_hub import HfApi

    return getattr(HfApi(), method)(*args, **kwargs)
