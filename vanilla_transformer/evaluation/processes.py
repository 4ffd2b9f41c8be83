# SPDX-License-Identifier: Apache-2.0
"""The processes among which work is shared, as Accelerate sees them."""

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env


def process_state() -> PartialState:
    """This process's place among those that `accelerate launch` or `torchrun` started; alone, the only one.

    The first call in a process decides where it computes, so every call comes through here. `PartialState()` itself
    would not let several processes meet on a machine without an accelerator.
    """
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available())
