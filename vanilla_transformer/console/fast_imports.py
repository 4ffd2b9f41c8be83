# SPDX-License-Identifier: Apache-2.0
"""Importing large libraries without searching them for garbage."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """For the imports of a program, which saves a quarter of the time that torch and transformers take.

    They make half a million objects that live until the process ends. Python would search them for cycles again and
    again, later too, and when it ends.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.freeze()
