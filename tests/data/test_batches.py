# SPDX-License-Identifier: Apache-2.0
"""Batches: every pair once, within both budgets, the same for the same seed and epoch."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from datasets import Dataset, IterableDataset

from vanilla_transformer.data.batches import StreamingTokenBatches, TokenBatchSampler

Lengths = tuple[list[int], list[int]]


@pytest.fixture
def lengths() -> Lengths:
    generator = np.random.default_rng(5)
    source = generator.integers(1, 40, size=500)
    return source.tolist(), np.clip(source + generator.integers(-8, 9, size=500), 1, 40).tolist()


def sampler(lengths: Lengths, **options) -> TokenBatchSampler:
    return TokenBatchSampler(*lengths, **{"max_source_tokens": 200, "max_target_tokens": 150, "seed": 3} | options)


def padded_sizes(batch: list[int], lengths: Lengths) -> list[int]:
    return [len(batch) * max(side[i] for i in batch) for side in lengths]


class TestTokenBatchSampler:
    @pytest.mark.parametrize("shuffle", [False, True])
    @pytest.mark.parametrize("num_processes", [1, 2, 3, 7])
    def test_every_pair_once_and_as_many_batches_for_each_process(
        self, lengths: Lengths, num_processes: int, shuffle: bool
    ):
        processes = [
            list(sampler(lengths, num_processes=num_processes, process_index=i, shuffle=shuffle))
            for i in range(num_processes)
        ]
        assert Counter(i for batches in processes for batch in batches for i in batch) == Counter(range(500))
        assert len({len(batches) for batches in processes}) == 1
        assert all(batch for batches in processes for batch in batches)

    @pytest.mark.parametrize("num_processes", [1, 3])
    def test_padded_sizes_stay_within_both_budgets(self, lengths: Lengths, num_processes: int):
        for index in range(num_processes):
            for batch in sampler(lengths, num_processes=num_processes, process_index=index):
                source, target = padded_sizes(batch, lengths)
                assert source <= 200
                assert target <= 150

    def test_no_batch_could_take_the_next_pair(self, lengths: Lengths):
        """In ascending order the cuts are greedy: one more pair would exceed a budget."""
        batches = list(sampler(lengths, shuffle=False))
        for batch, following in pairwise(batches):
            source, target = padded_sizes([*batch, following[0]], lengths)
            assert source > 200 or target > 150

    def test_unshuffled_order_is_ascending_and_the_same_in_every_epoch(self, lengths: Lengths):
        each = sampler(lengths, shuffle=False)
        first = list(each)
        flat = [(lengths[0][i], lengths[1][i]) for batch in first for i in batch]
        assert flat == sorted(flat)
        each.set_epoch(1)
        assert list(each) == first

    def test_order_is_a_function_of_seed_and_epoch(self, lengths: Lengths):
        travelled, fresh = sampler(lengths), sampler(lengths)
        for epoch in (0, 1, 2):
            travelled.set_epoch(epoch)
        fresh.set_epoch(2)
        assert list(travelled) == list(fresh)

    def test_epochs_and_seeds_differ_in_order_and_in_composition(self, lengths: Lengths):
        one, other_epoch, other_seed = sampler(lengths), sampler(lengths), sampler(lengths, seed=4)
        other_epoch.set_epoch(1)
        compositions = [{frozenset(batch) for batch in each} for each in (one, other_epoch, other_seed)]
        assert compositions[0] != compositions[1]
        assert compositions[0] != compositions[2]

    def test_batches_are_shuffled(self, lengths: Lengths):
        longest = [max(lengths[0][i] for i in batch) for batch in sampler(lengths)]
        assert longest != sorted(longest)

    def test_resuming_skips_the_first_batches(self, lengths: Lengths):
        each = sampler(lengths)
        each.set_epoch(3)
        whole = list(each)
        each.set_epoch(3, start_batch=10)
        assert list(each) == whole[10:]
        assert len(each) == len(whole)

    def test_processes_get_neighbours_in_length_at_each_step(self, lengths: Lengths):
        """Sorted by length, the batches of one step stand next to one another."""
        processes = [list(sampler(lengths, num_processes=2, process_index=i)) for i in range(2)]
        ranges = sorted(
            (sorted((lengths[0][i], lengths[1][i]) for i in batch)[:: max(1, len(batch) - 1)], step)
            for step, batches in enumerate(zip(*processes, strict=True))
            for batch in batches
        )
        steps = [step for _, step in ranges]
        assert steps[::2] == steps[1::2]

    def test_padding_share_is_that_of_the_padded_matrices(self, lengths: Lengths):
        each = sampler(lengths)
        padded = sum(sum(padded_sizes(batch, lengths)) for batch in each)
        assert each.padding_share() == pytest.approx(1 - sum(map(sum, lengths)) / padded)

    def test_similar_lengths_stand_together(self, lengths: Lengths):
        """Batches of random pairs would be more than a third padding."""
        assert sampler(lengths).padding_share() < 0.15

    def test_takes_columns_of_datasets(self, lengths: Lengths):
        columns = Dataset.from_dict({"s": lengths[0], "t": lengths[1]})
        assert list(sampler((columns["s"], columns["t"]))) == list(sampler(lengths))

    @pytest.mark.parametrize(("side", "other"), [("source", 0), ("target", 1)])
    def test_a_pair_beyond_the_budget_is_named(self, side: str, other: int):
        lengths = [[1, 1, 1], [1, 1, 1]]
        lengths[other][1] = 500
        with pytest.raises(ValueError, match=f"pair 1 has 500 {side} tokens.*max_{side}_tokens=.*data.max_length"):
            sampler((lengths[0], lengths[1]))

    def test_fewer_pairs_than_processes(self):
        with pytest.raises(ValueError, match="2 pairs cannot be shared by 3 processes"):
            sampler(([1, 1], [1, 1]), num_processes=3)

    def test_no_pairs(self):
        with pytest.raises(ValueError, match="no pairs"):
            sampler(([], []))

    def test_batches_that_cannot_be_cut_are_no_empty_batches(self):
        with pytest.raises(ValueError, match="5 batches of one pair cannot be shared evenly by 2 processes"):
            sampler(([150] * 5, [150] * 5), num_processes=2)


class TestStreamingTokenBatches:
    def batches(self, lengths: Lengths, **options) -> StreamingTokenBatches:
        rows = {
            "number": list(range(len(lengths[0]))),
            "source_length": lengths[0],
            "target_length": lengths[1],
        }
        stream = Dataset.from_dict(rows).to_iterable_dataset()
        defaults = {"max_source_tokens": 200, "max_target_tokens": 150, "seed": 3, "pool_size": 120}
        return StreamingTokenBatches(stream, **defaults | options)

    @staticmethod
    def numbers(batches: StreamingTokenBatches) -> list[list[int]]:
        return [[row["number"] for row in batch] for batch in batches]

    def test_every_pair_once_within_both_budgets(self, lengths: Lengths):
        found = self.numbers(self.batches(lengths))
        assert Counter(i for batch in found for i in batch) == Counter(range(500))
        for batch in found:
            source, target = padded_sizes(batch, lengths)
            assert source <= 200
            assert target <= 150

    def test_order_is_a_function_of_seed_and_epoch(self, lengths: Lengths):
        travelled, fresh = self.batches(lengths), self.batches(lengths)
        first = self.numbers(travelled)
        for each in (travelled, fresh):
            each.set_epoch(2)
        assert self.numbers(travelled) == self.numbers(fresh) != first

    def test_resuming_skips_the_first_batches(self, lengths: Lengths):
        each = self.batches(lengths)
        each.set_epoch(1)
        whole = self.numbers(each)
        each.set_epoch(1, start_batch=7)
        assert self.numbers(each) == whole[7:]

    def test_several_processes_are_refused(self, lengths: Lengths):
        with pytest.raises(ValueError, match="streaming serves one process, not 2"):
            self.batches(lengths, num_processes=2)

    def test_a_stream_without_pairs(self):
        def nothing():
            yield from ()

        stream = IterableDataset.from_generator(nothing)
        with pytest.raises(ValueError, match="no pair to train on"):
            list(StreamingTokenBatches(stream, max_source_tokens=9, max_target_tokens=9, seed=1))
