# SPDX-License-Identifier: Apache-2.0
"""An interruption of a decoding that writes shards."""

from collections.abc import Callable


class Interrupted(Exception):
    pass


def interrupt_after(shards: int) -> Callable[[int], None]:
    done = []

    def on_progress(lines: int) -> None:
        done.append(lines)
        if len(done) == shards:
            raise Interrupted

    return on_progress
