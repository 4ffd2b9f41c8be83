# SPDX-License-Identifier: Apache-2.0
"""Section 5.1 of the paper: batches of pairs of similar length, within a token budget for each side."""

from abc import ABC, abstractmethod
from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from torch.utils.data import IterableDataset, Sampler

if TYPE_CHECKING:
    import datasets

    from vanilla_transformer.data.mixture import InterleavedStreams, Mixture

Batch = TypeVar("Batch", np.ndarray, list)

# A longer corpus is sorted and cut shard by shard: about 150 MB of memory and a second for each.
PAIRS_PER_SHARD = 2**22
# Neighbours in the corpus that a shard takes together, so that the disk reads them together.
PAIRS_PER_RUN = 2**10
SHUFFLE_BUFFER = 20_000  # pairs of a stream


def distribute_evenly(batches: Iterable[Batch], num_processes: int) -> Iterator[list[Batch]]:
    """Yield groups of `num_processes` batches, one for each process, in the order of `batches`.

    If the number of batches is not a multiple of `num_processes`, batches of the last group are halved, the largest
    first, until each process has one. Groups before it are halved too if the last one has too few pairs.

    Raises:
        ValueError: there are not enough pairs at the end.
    """
    pending: list[Batch] = []
    spare = 0  # pairs that the batches behind the first group could give away: all but one of each
    for batch in batches:
        pending.append(batch)
        spare += len(batch) - 1 if len(pending) > num_processes else 0
        # The batches that stay can fill a last group, even if only batches of one pair follow.
        while len(pending) > num_processes and spare >= num_processes - 1:
            yield pending[:num_processes]
            del pending[:num_processes]
            spare -= sum(len(batch) - 1 for batch in pending[:num_processes])
    if remainder := len(pending) % num_processes:
        missing = num_processes - remainder
        for count in range(remainder, len(pending) + 1, num_processes):
            if sum(map(len, pending[-count:])) >= count + missing:
                break
        else:
            raise ValueError(
                f"the last {len(pending)} batches, with {sum(map(len, pending))} pairs in all, cannot be split evenly "
                f"between {num_processes} processes; raise max_source_tokens and max_target_tokens, or use fewer "
                "processes"
            )
        pending[-count:] = _halve_largest(pending[-count:], count + missing)
    for start in range(0, len(pending), num_processes):
        yield pending[start : start + num_processes]


def _halve_largest(batches: list[Batch], number: int) -> list[Batch]:
    while len(batches) < number:
        largest = max(range(len(batches)), key=lambda i: len(batches[i]))
        middle = len(batches[largest]) // 2
        batches[largest : largest + 1] = [batches[largest][:middle], batches[largest][middle:]]
    return batches


def check_lengths(lengths: Sequence[np.ndarray], max_source_tokens: int, max_target_tokens: int) -> None:
    """Raise ValueError if there are no pairs, or if a pair alone exceeds a budget; `lengths` as for `cut_batches`."""
    if len(lengths[0]) == 0:
        raise ValueError("there are no pairs to make batches of")
    budgets = {"source": max_source_tokens, "target": max_target_tokens}
    for (side, budget), tokens in zip(budgets.items(), lengths, strict=True):
        longest = int(tokens.argmax())
        if tokens[longest] > budget:
            raise ValueError(
                f"pair {longest} has {tokens[longest]} {side} tokens, more than max_{side}_tokens={budget}; raise it, "
                "or lower data.max_length"
            )


def cut_batches(
    lengths: np.ndarray,
    max_source_tokens: int,
    max_target_tokens: int,
    generator: np.random.Generator | None,
) -> list[np.ndarray]:
    """Sort pairs by their longer side and cut them into batches, each as long as the budgets allow (`check_lengths`).

    Pairs of equal longer sides ascend and descend in turn by the difference of their sides, so that neighbours are
    alike. Of the budget of 4,096 tokens, 94.5% hold tokens of Multi30k's longer side; sorted by the source, 86% did.

    Args:
        lengths: `(2, pairs)`: source and target tokens of each pair.
        generator: decides the order of pairs of equal lengths, and of the batches; `None`: in ascending length.

    Returns:
        The indices of each batch's pairs.
    """
    pairs = lengths.shape[1]
    ties = np.arange(pairs) if generator is None else generator.random(pairs)
    longer, difference = lengths.max(axis=0), lengths[0].astype(np.int64) - lengths[1]
    order = np.lexsort((ties, np.where(longer % 2 == 0, difference, -difference), longer))
    ordered, ascending = lengths[:, order], longer[order]
    batches, start, budget = [], 0, max(max_source_tokens, max_target_tokens)
    while start < pairs:
        # No later pair's longer side is shorter than that of the pair at `start`, which bounds the number of pairs.
        max_pairs = budget // max(1, int(ascending[start]))
        longest_so_far = np.maximum.accumulate(ordered[:, start : start + max_pairs], axis=1)
        padded = longest_so_far * np.arange(1, longest_so_far.shape[1] + 1)  # tokens of a batch that ends here
        count = int(((padded[0] <= max_source_tokens) & (padded[1] <= max_target_tokens)).sum())
        batches.append(order[start : start + count])
        start += count
    return batches if generator is None else [batches[i] for i in generator.permutation(len(batches))]


class DistributedBatches(ABC):
    """An epoch is one list of batches, from which all processes take the next ones together (`distribute_evenly`).

    The pairs consumed so far are always the first of the list, so that a run with another number of processes resumes
    in the middle of an epoch. It calls `set_consumed` before `set_epoch`.

    Args:
        max_source_tokens, max_target_tokens: budget of each batch, as pairs x longest; about 25,000 in the paper.
        seed: decides the order.
        num_processes, process_index: each process yields its own batches, all the same number of them.
    """

    def __init__(
        self,
        *,
        max_source_tokens: int,
        max_target_tokens: int,
        seed: int,
        num_processes: int = 1,
        process_index: int = 0,
    ):
        assert 0 <= process_index < num_processes
        self.budgets = (max_source_tokens, max_target_tokens)
        self.seed = seed
        self.num_processes = num_processes
        self.process_index = process_index
        self.consumed_epoch = self.consumed_pairs = 0

    @abstractmethod
    def _list_batches(self, epoch: int) -> Iterable:
        """All batches of the epoch, whatever the number of processes."""

    def set_consumed(self, epoch: int, pairs: int) -> None:
        """Leave out the first `pairs` of `epoch`, which another number of processes has consumed."""
        self.consumed_epoch, self.consumed_pairs = epoch, pairs

    def set_epoch(self, epoch: int, start_batch: int = 0) -> None:
        """Choose the epoch, and how many of this process's batches to skip after the pairs of `set_consumed`."""
        self.epoch, self.start_batch = epoch, start_batch

    def count_consumed(self, epoch: int, num_processes: int, batches: int) -> int:
        """Pairs of `epoch` consumed once each of `num_processes` processes has had `batches` batches."""
        groups = islice(self._distribute(self._list_batches(epoch), epoch, num_processes), batches)
        before = self.consumed_pairs if epoch == self.consumed_epoch else 0
        return before + sum(len(batch) for group in groups for batch in group)

    def _distribute(self, batches: Iterable[Batch], epoch: int, num_processes: int) -> Iterator[list[Batch]]:
        if epoch == self.consumed_epoch:
            batches = _skip_pairs(batches, self.consumed_pairs)
        return distribute_evenly(batches, num_processes)


def _skip_pairs(batches: Iterable[Batch], pairs: int) -> Iterator[Batch]:
    """Leave out the first `pairs` pairs, which may end within a batch."""
    for batch in batches:
        skipped = min(pairs, len(batch))
        pairs -= skipped
        if skipped < len(batch):
            yield batch[skipped:]


class TokenBatchSampler(DistributedBatches, Sampler[list[int]]):
    """Batches by padded size; every pair exactly once an epoch, over all processes.

    An epoch's batches are a function of (seed, epoch) alone, so that a resumed run skips by counting. The number of
    processes matters only at the end of an epoch, where batches may have to be halved.

    Batches come in random order: those of a step differ in length, but all fill the same budgets, and take about as
    long. Batches of similar length one after another cost more than they gain, because their gradients are alike:
    after 500 updates of `make quickstart`'s Transformer the validation perplexity was 2.99 with eight in a row, not
    1.99.

    More than `PAIRS_PER_SHARD` pairs are sorted and cut in shards, one after another, so that memory does not grow
    with the corpus. Each epoch draws the pairs of a shard from the whole corpus, in runs of `PAIRS_PER_RUN`.

    Args:
        source_lengths, target_lengths: tokens of each pair; arrays, mapped ones perhaps, are not copied.
        shuffle: `False`: in ascending length, the same in every epoch.
        mixture: chooses the pairs of each epoch; `None`: all.
        options: as for `DistributedBatches`.

    Raises:
        ValueError: there are no pairs, or too few for the processes; a pair alone exceeds a budget.
    """

    def __init__(
        self,
        source_lengths: Sequence[int],
        target_lengths: Sequence[int],
        *,
        shuffle: bool = True,
        mixture: "Mixture | None" = None,
        **options: Any,
    ):
        super().__init__(**options)
        # Slices: numpy would ask a column of `datasets` for one number at a time.
        self.lengths = np.asarray(source_lengths[:]), np.asarray(target_lengths[:])
        check_lengths(self.lengths, *self.budgets)
        self.mixture = mixture
        self.pairs = len(self.lengths[0]) if mixture is None else mixture.pairs  # of an epoch
        self.shards = -(-self.pairs // PAIRS_PER_SHARD)
        self.shuffle = shuffle
        self.epoch = -1
        self.set_epoch(0)

    def set_epoch(self, epoch: int, start_batch: int = 0) -> None:
        if epoch != self.epoch:
            self.first_shard = list(self._cut_shard(epoch, 0))  # all of a corpus that is not long
        super().set_epoch(epoch, start_batch)
        if self.shards == 1:  # too few pairs for the processes are found now; a long corpus has enough
            self.count_consumed(epoch, self.num_processes, len(self.first_shard))

    def _list_batches(self, epoch: int) -> Iterator[np.ndarray]:
        for shard in range(self.shards):
            is_cut = (epoch, shard) == (self.epoch, 0)
            yield from self.first_shard if is_cut else self._cut_shard(epoch, shard)

    def _cut_shard(self, epoch: int, shard: int) -> Iterator[np.ndarray]:
        if self.shards == 1:
            generator = np.random.default_rng((self.seed, epoch)) if self.shuffle else None
            return self._cut(epoch, np.arange(self.pairs), generator)
        runs = np.arange(-(-self.pairs // PAIRS_PER_RUN))
        if self.shuffle:
            np.random.default_rng((self.seed, epoch)).shuffle(runs)
        drawn = np.array_split(runs, self.shards)[shard]
        indices = (drawn[:, None] * PAIRS_PER_RUN + np.arange(PAIRS_PER_RUN)).ravel()
        indices = indices[indices < self.pairs]
        generator = np.random.default_rng((self.seed, epoch, shard + 1)) if self.shuffle else None
        return self._cut(epoch, indices, generator)

    def _cut(self, epoch: int, indices: np.ndarray, generator: np.random.Generator | None) -> Iterator[np.ndarray]:
        if self.mixture is not None:
            indices = self.mixture.rows(epoch, indices)
        lengths = np.stack([side[indices] for side in self.lengths])
        return (indices[batch] for batch in cut_batches(lengths, *self.budgets, generator))

    def __iter__(self) -> Iterator[list[int]]:
        groups = self._distribute(self._list_batches(self.epoch), self.epoch, self.num_processes)
        for group in islice(groups, self.start_batch, None):
            yield group[self.process_index].tolist()

    def __len__(self) -> int:
        """Batches of this process in the whole epoch; of several shards, as the first one has them."""
        return -(-len(self.first_shard) * self.pairs // (self._pairs_of_first_shard() * self.num_processes))

    def _pairs_of_first_shard(self) -> int:
        return sum(map(len, self.first_shard))

    def fraction_consumed(self, batches: int) -> float:
        """Fraction of the epoch's pairs consumed once each process has had `batches` batches; estimated as `len`."""
        if self.shards == 1:
            return self.count_consumed(self.epoch, self.num_processes, batches) / self.pairs
        before = self.consumed_pairs if self.epoch == self.consumed_epoch else 0
        pairs_per_batch = self._pairs_of_first_shard() / len(self.first_shard)
        return min(1.0, (before + batches * self.num_processes * pairs_per_batch) / self.pairs)

    def padding_share(self) -> float:
        """Fraction of the positions in the batches, both sides, that hold padding; in the epoch's first shard."""
        lengths = [[side[batch] for side in self.lengths] for batch in self.first_shard]
        padded = sum(len(side) * int(side.max()) for batch in lengths for side in batch)
        return 1 - sum(int(side.sum()) for batch in lengths for side in batch) / padded


class StreamingTokenBatches(DistributedBatches, IterableDataset):
    """The same batches from a stream of pairs, which is read in pools that are sorted and cut one after another.

    Pairs share a batch only with pairs of their pool, so a pool is large: of the positions in batches of 25,000 tokens
    of Multi30k's lengths, 95% hold tokens with 100,000 pairs in a pool, and 73% did with 20,000. A resumed run reads
    again the pairs that it skips.

    Each process reads, tokenises and pools the whole stream. `split_dataset_by_node` of `datasets` would spare that
    if there were as many shards, but leaves processes with unequal numbers of batches, unknown beforehand, and with
    an order that another number of processes cannot resume. A corpus that fits the disk is better prepared there.

    Args:
        pairs: `prepare_pairs` of a streaming corpus; the same in each process.
        pool_size: pairs in a pool, which is held in memory, a few hundred bytes a pair.
        options: as for `DistributedBatches`.

    Raises:
        ValueError: while iterating: the stream has no pairs, or too few for the processes; a pair alone exceeds a
            budget (its number is the one within its pool).
    """

    def __init__(
        self, pairs: "datasets.IterableDataset | InterleavedStreams", *, pool_size: int = 100_000, **options: Any
    ):
        super().__init__(**options)
        self.pairs = pairs.shuffle(seed=self.seed, buffer_size=min(pool_size, SHUFFLE_BUFFER))
        self.pool_size = pool_size
        self.set_epoch(0)

    def __iter__(self) -> Iterator[list[dict[str, list[int]]]]:
        """Batches as lists of rows with `input_ids` and `labels`."""
        groups = self._distribute(self._list_batches(self.epoch), self.epoch, self.num_processes)
        for group in islice(groups, self.start_batch, None):
            yield [{name: side.tolist() for name, side in row.items()} for row in group[self.process_index]]

    def _list_batches(self, epoch: int) -> Iterator[list[dict[str, array]]]:
        self.pairs.set_epoch(epoch)
        # Arrays: a list takes eight bytes for each token, and more for the number in it.
        rows = ({name: array("I", row[name]) for name in ("input_ids", "labels")} for row in self.pairs)
        pools = 0
        while pool := list(islice(rows, self.pool_size)):
            lengths = np.array([[len(row[name]) for row in pool] for name in ("input_ids", "labels")])
            check_lengths(lengths, *self.budgets)  # pyright: ignore[reportArgumentType] -- its rows are a sequence
            generator = np.random.default_rng((self.seed + pools, epoch))
            for batch in cut_batches(lengths, *self.budgets, generator):
                yield [pool[i] for i in batch]
            pools += 1
        if pools == 0:
            raise ValueError("the stream has no pair to train on: all are empty, too long, or missing")
