# SPDX-License-Identifier: Apache-2.0
import io
import sys
from collections.abc import Callable

import pytest


@pytest.fixture
def give_input(monkeypatch) -> Callable[[bytes], None]:
    """What the command finds on its standard input."""

    def give(data: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))

    return give
