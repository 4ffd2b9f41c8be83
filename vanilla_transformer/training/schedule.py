# SPDX-License-Identifier: Apache-2.0
"""Section 5.3 of the paper: the learning rate."""

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def learning_rate(step: int, d_model: int, warmup_steps: int, scale: float = 1.0) -> float:
    """Equation 3: scale * d_model^-0.5 * min(step^-0.5, step * warmup_steps^-1.5); `step` counts updates from 1."""
    return scale * d_model**-0.5 * min(step**-0.5, step * warmup_steps**-1.5)


def paper_schedule(optimizer: Optimizer, d_model: int, warmup_steps: int, scale: float = 1.0) -> LambdaLR:
    """Equation 3 as torch's scheduler, stepped once per update.

    transformers' `inverse_sqrt` starts at rate 0, so its first update changes nothing; equation 3 starts at step 1.
    The optimizer must be made with lr=1.0: the schedule gives the rate itself.
    """
    return LambdaLR(optimizer, lambda done: learning_rate(done + 1, d_model, warmup_steps, scale))
