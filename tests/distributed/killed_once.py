# SPDX-License-Identifier: Apache-2.0
"""`train`, whose process `KILLED` is killed after 6 updates, unless torchrun has started it again."""

import os
import signal
import sys
from pathlib import Path

from vanilla_transformer.training import loop
from vanilla_transformer.training.configuration import load_run_config
from vanilla_transformer.training.train_state import TrainState

apply_update = loop.apply_update


def apply_update_and_die(state: TrainState, tokens: int) -> None:
    apply_update(state, tokens)
    is_chosen = os.environ["RANK"] == os.environ["KILLED"] and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
    if is_chosen and state.progress.updates == 6:
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    loop.apply_update = apply_update_and_die
    loop.train(load_run_config(Path(sys.argv[1]), sys.argv[2:]))
