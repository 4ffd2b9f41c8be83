# SPDX-License-Identifier: Apache-2.0
"""How far a run has come."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass
class Progress:
    """How far a run has come; saved in every checkpoint.

    Args:
        updates: updates of the weights so far.
        epoch: epochs finished.
        batches: micro-batches of the current epoch that this process has consumed.
        seconds: time in updates, summed over resumed parts; validation and checkpoints are not counted.
        target_tokens: target tokens trained on, over all processes.
        best_bleu: best validation BLEU so far; -1 before the first.
        processes: among which the batches are shared.
        pairs: to train on; `None` for a stream.
    """

    updates: int = 0
    epoch: int = 0
    batches: int = 0
    seconds: float = 0.0
    target_tokens: int = 0
    best_bleu: float = -1.0
    processes: int = 1
    pairs: int | None = None

    def state_dict(self) -> dict[str, Any]:
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value)
