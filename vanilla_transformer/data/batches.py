# SPDX-License-Identifier: Apache-2.0
"""Section 5.1 of the paper: batches of pairs of similar length, within a budget of tokens for each side."""

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler


class TokenBatchSampler(Sampler[list[int]]):
    """Batches by padded size; every pair exactly once an epoch, over all processes.

    The order is a function of (seed, epoch) alone, so that a resumed run skips what it has seen by counting.

    Args:
        source_lengths, target_lengths: tokens of each pair.
        max_source_tokens, max_target_tokens: bounds of pairs x longest on either side, for each process.
        seed: of the order.
        shuffle: `False`: ascending length, the same in every epoch.
        num_processes, process_index: each process yields its own batches, all the same number of them, and at
            each step batches of neighbouring length.

    Raises:
        ValueError: a pair that alone exceeds a budget; fewer pairs than processes.
    """

    def __init__(
        self,
        source_lengths: Sequence[int],
        target_lengths: Sequence[int],
        *,
        max_source_tokens: int,
        max_target_tokens: int,
        seed: int,
        shuffle: bool = True,
        num_processes: int = 1,
        process_index: int = 0,
    ):
        self.source_lengths = np.asarray(source_lengths, dtype=np.int64)  # (pairs)
        self.target_lengths = np.asarray(target_lengths, dtype=np.int64)  # (pairs)
        self.budgets = (max_source_tokens, max_target_tokens)
        self.seed = seed
        self.shuffle = shuffle
        self.num_processes = num_processes
        self.process_index = process_index
        self._check()
        self.set_epoch(0)

    def _check(self) -> None:
        sides = (("source", self.source_lengths), ("target", self.target_lengths))
        for (side, lengths), budget in zip(sides, self.budgets, strict=True):
            longest = int(lengths.argmax())
            if lengths[longest] > budget:
                raise ValueError(
                    f"pair {longest} has {lengths[longest]} {side} tokens, more than max_{side}_tokens={budget}; "
                    f"raise it, or lower data.max_length"
                )
        if len(self.source_lengths) < self.num_processes:
            raise ValueError(f"{len(self.source_lengths)} pairs cannot be shared by {self.num_processes} processes")

    def set_epoch(self, epoch: int, start_batch: int = 0) -> None:
        """Choose the epoch, and how many of this process's batches to skip at its beginning."""
        self.start_batch = start_batch
        generator = np.random.default_rng((self.seed, epoch))
        # Pairs of equal lengths stand in random order, so that an epoch's batches differ from the last one's.
        ties = generator.random(len(self.source_lengths)) if self.shuffle else np.arange(len(self.source_lengths))
        order = np.lexsort((ties, self.target_lengths, self.source_lengths))  # (pairs)
        batches = self._cut(order)
        # Groups of neighbours, one batch for each process.
        groups = [batches[i : i + self.num_processes] for i in range(0, len(batches), self.num_processes)]
        if self.shuffle:
            generator.shuffle(groups)
        self.batches = [group[self.process_index] for group in groups]

    def _cut(self, order: np.ndarray) -> list[np.ndarray]:
        """Greedy cuts along `order`, then the largest batches in two until the processes share them evenly."""
        batches, start = [], 0
        source_lengths, target_lengths = self.source_lengths[order].tolist(), self.target_lengths[order].tolist()
        longest_source = longest_target = 0
        for end, (source, target) in enumerate(zip(source_lengths, target_lengths, strict=True)):
            longest_source, longest_target = max(longest_source, source), max(longest_target, target)
            pairs = end - start + 1
            if pairs * longest_source > self.budgets[0] or pairs * longest_target > self.budgets[1]:
                batches.append(order[start:end])
                start, longest_source, longest_target = end, source, target
        batches.append(order[start:])
        while len(batches) % self.num_processes:
            largest = max(range(len(batches)), key=lambda i: len(batches[i]))
            middle = len(batches[largest]) // 2
            batches[largest : largest + 1] = [batches[largest][:middle], batches[largest][middle:]]
        return batches

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self.batches[self.start_batch :]:
            yield batch.tolist()

    def __len__(self) -> int:
        """Batches of this process in the whole epoch."""
        return len(self.batches)

    def padding_share(self) -> float:
        """Share of the positions in this process's batches, both sides, that hold padding."""
        real = sum(int(self.source_lengths[b].sum() + self.target_lengths[b].sum()) for b in self.batches)
        padded = sum(
            len(b) * int(self.source_lengths[b].max() + self.target_lengths[b].max()) for b in self.batches
        )
        return 1 - real / padded
