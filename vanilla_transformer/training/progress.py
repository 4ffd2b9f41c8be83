# SPDX-License-Identifier: Apache-2.0
"""How far a run has come."""

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class Progress:
    """How far a run has come; saved in every checkpoint.

    Args:
        updates: updates of the weights so far.
        epoch: finished epochs.
        batches: micro-batches of the current epoch that each process has consumed since there are `processes`.
        seconds: time in updates, summed over resumed parts; validation and checkpoints are not counted.
        target_tokens: target tokens trained on, over all processes.
        best_bleu: best validation BLEU so far; -1 before the first.
        processes: the number of processes.
        pairs: in the training corpus; `None` for a stream.
        corpus, validation_corpus: `data.corpus.fingerprint` of the training and the validation corpus.
        begun_epoch, begun_pairs: the epoch in which the number of processes last changed, and how many of its pairs
            were consumed before.
        skipped_updates: updates whose loss or gradient was not finite; `updates` does not count them.
        halved_batches: how often a micro-batch, or a part of it, was halved because it did not fit in memory.
    """

    updates: int = 0
    epoch: int = 0
    batches: int = 0
    seconds: float = 0.0
    target_tokens: int = 0
    best_bleu: float = -1.0
    processes: int = 1
    pairs: int | None = None
    corpus: dict[str, str] = field(default_factory=dict)
    validation_corpus: dict[str, str] = field(default_factory=dict)
    begun_epoch: int = 0
    begun_pairs: int = 0
    skipped_updates: int = 0
    halved_batches: int = 0

    def change_processes(self, processes: int, consumed_pairs: int) -> None:
        """Go on with another number of processes, which share the current epoch after its consumed pairs."""
        self.processes, self.batches = processes, 0
        self.begun_epoch, self.begun_pairs = self.epoch, consumed_pairs

    def state_dict(self) -> dict[str, Any]:
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value)
