# SPDX-License-Identifier: Apache-2.0
"""`train`, whose process `KILLED` is killed after 6 updates, unless torchrun has started it again."""

import itertools
import os
import signal
import sys
from pathlib import Path
from typing import Any

from vanilla_transformer.training import loop
from vanilla_transformer.training.configuration import load_run_config

backward, begun = loop.backward, itertools.count(1)


def backward_or_die(*arguments: Any) -> Any:
    is_chosen = os.environ["RANK"] == os.environ["KILLED"] and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
    if is_chosen and next(begun) == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return backward(*arguments)


if __name__ == "__main__":
    loop.backward = backward_or_die
    loop.train(load_run_config(Path(sys.argv[1]), sys.argv[2:]))
