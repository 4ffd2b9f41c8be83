# SPDX-License-Identifier: Apache-2.0
"""Section 5.1 of the paper: batches of pairs of similar length, within a budget of tokens for each side."""

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
from torch.utils.data import IterableDataset, Sampler

if TYPE_CHECKING:
    import datasets


class TokenBatchSampler(Sampler[list[int]]):
    """Batches by padded size; every pair exactly once an epoch, over all processes.

    The order is a function of (seed, epoch) alone, so that a resumed run skips what it has seen by counting.

    Args:
        source_lengths, target_lengths: tokens of each pair.
        max_source_tokens, max_target_tokens: bounds of pairs x longest on either side, for each process; about
            25,000 in the paper.
        seed: of the order.
        shuffle: `False`: ascending length, the same in every epoch.
        num_processes, process_index: each process yields its own batches, all the same number of them, and at
            each step batches of neighbouring length.

    Raises:
        ValueError: no pairs; a pair that alone exceeds a budget; too few pairs for the processes to share.
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
        # A slice first: numpy would ask a column of `datasets` for one number at a time.
        self.source_lengths = np.asarray(source_lengths[:], dtype=np.int64)  # (pairs)
        self.target_lengths = np.asarray(target_lengths[:], dtype=np.int64)  # (pairs)
        assert self.source_lengths.shape == self.target_lengths.shape
        assert 0 <= process_index < num_processes
        self.budgets = (max_source_tokens, max_target_tokens)
        self.seed = seed
        self.shuffle = shuffle
        self.num_processes = num_processes
        self.process_index = process_index
        self._check()
        self.set_epoch(0)

    def _check(self) -> None:
        pairs = len(self.source_lengths)
        if pairs == 0:
            raise ValueError("there are no pairs to make batches of")
        sides = (("source", self.source_lengths), ("target", self.target_lengths))
        for (side, lengths), budget in zip(sides, self.budgets, strict=True):
            longest = int(lengths.argmax())
            if lengths[longest] > budget:
                raise ValueError(
                    f"pair {longest} has {lengths[longest]} {side} tokens, more than max_{side}_tokens={budget}; "
                    f"raise it, or lower data.max_length"
                )
        if pairs < self.num_processes:
            raise ValueError(f"{pairs} pairs cannot be shared by {self.num_processes} processes")

    def set_epoch(self, epoch: int, start_batch: int = 0) -> None:
        """Choose the epoch, and how many of this process's batches to skip at its beginning."""
        self.start_batch = start_batch
        generator = np.random.default_rng((self.seed, epoch))
        # Pairs of equal lengths stand in random order, so that an epoch's batches differ from the last one's.
        ties = generator.random(len(self.source_lengths)) if self.shuffle else np.arange(len(self.source_lengths))
        order = np.lexsort((ties, self.target_lengths, self.source_lengths))  # (pairs)
        batches = self._share_evenly(self._cut(order))
        # Groups of neighbours, one batch for each process.
        groups = [batches[i : i + self.num_processes] for i in range(0, len(batches), self.num_processes)]
        if self.shuffle:
            generator.shuffle(groups)
        self.batches = [group[self.process_index] for group in groups]

    def _cut(self, order: np.ndarray) -> list[np.ndarray]:
        """Cuts along `order` (ascending source length), each batch as long as the budgets allow."""
        sides = list(zip((self.source_lengths[order], self.target_lengths[order]), self.budgets, strict=True))
        batches, start = [], 0
        while start < len(order):
            # No batch has more pairs than this: no later source is shorter than the one at `start`.
            most = self.budgets[0] // max(1, int(sides[0][0][start]))
            pairs = np.arange(1, min(most, len(order) - start) + 1)
            fits = np.ones(len(pairs), dtype=bool)
            for lengths, budget in sides:
                fits &= pairs * np.maximum.accumulate(lengths[start : start + len(pairs)]) <= budget
            count = int(fits.sum())  # the padded size only grows, so those that fit come first
            batches.append(order[start : start + count])
            start += count
        return batches

    def _share_evenly(self, batches: list[np.ndarray]) -> list[np.ndarray]:
        """The largest batches cut in two until each process gets as many as the others."""
        while len(batches) % self.num_processes:
            largest = max(range(len(batches)), key=lambda i: len(batches[i]))
            middle = len(batches[largest]) // 2
            if middle == 0:
                raise ValueError(
                    f"{len(batches)} batches of one pair cannot be shared evenly by {self.num_processes} processes; "
                    "raise max_source_tokens and max_target_tokens, or use fewer processes"
                )
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
        padded = sum(len(b) * int(self.source_lengths[b].max() + self.target_lengths[b].max()) for b in self.batches)
        return 1 - real / padded


class StreamingTokenBatches(IterableDataset):
    """The same batches from a stream of pairs: pools of it are sorted and cut, one after another.

    Which pairs share a batch depends on their pool, so padding is a little more than `TokenBatchSampler`'s. A
    resumed run reads again what it skips.

    Args:
        pairs: what `prepare_pairs` makes of a streaming corpus.
        max_source_tokens, max_target_tokens: bounds of pairs x longest on either side.
        seed: of the order, which is a function of (seed, epoch) alone.
        pool_size: pairs in a pool, and in the buffer from which the stream is shuffled; both are held in memory.
        num_processes: 1, the only number that a stream can serve.

    Raises:
        ValueError: more than one process; while iterating, a stream without pairs, or a pair that alone exceeds a
            budget (its number is the one within its pool).
    """

    def __init__(
        self,
        pairs: "datasets.IterableDataset",
        *,
        max_source_tokens: int,
        max_target_tokens: int,
        seed: int,
        pool_size: int = 20_000,
        num_processes: int = 1,
    ):
        if num_processes > 1:
            raise ValueError(f"streaming serves one process, not {num_processes}; set streaming=false for the corpus")
        self.pairs = pairs.shuffle(seed=seed, buffer_size=pool_size)
        self.budgets = {"max_source_tokens": max_source_tokens, "max_target_tokens": max_target_tokens}
        self.seed = seed
        self.pool_size = pool_size
        self.set_epoch(0)

    def set_epoch(self, epoch: int, start_batch: int = 0) -> None:
        """Choose the epoch, and how many batches to skip at its beginning."""
        self.epoch, self.start_batch = epoch, start_batch
        self.pairs.set_epoch(epoch)

    def __iter__(self) -> Iterator[list[dict]]:
        """Lists of rows of `pairs`, each list a batch."""
        return islice(self._batches(), self.start_batch, None)

    def _batches(self) -> Iterator[list[dict]]:
        stream, number = iter(self.pairs), 0
        while pool := list(islice(stream, self.pool_size)):
            lengths = ([row[f"{side}_length"] for row in pool] for side in ("source", "target"))
            sampler = TokenBatchSampler(*lengths, **self.budgets, seed=self.seed + number)
            sampler.set_epoch(self.epoch)
            for batch in sampler:
                yield [pool[i] for i in batch]
            number += 1
        if number == 0:
            raise ValueError("the stream has no pair to train on: all are empty, too long, or missing")
