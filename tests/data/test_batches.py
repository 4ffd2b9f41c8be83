# SPDX-License-Identifier: Apache-2.0
"""Batches: every pair once, within both budgets, the same for the same seed and epoch."""

from collections import Counter
from itertools import chain, pairwise, repeat

import numpy as np
import pytest
from datasets import Dataset, IterableDataset

from vanilla_transformer.data import batches
from vanilla_transformer.data.batches import StreamingTokenBatches, TokenBatchSampler, distribute_evenly

Lengths = tuple[list[int], list[int]]
NUMBERS_OF_PROCESSES = (1, 2, 3, 4)


@pytest.fixture
def lengths() -> Lengths:
    generator = np.random.default_rng(5)
    source = generator.integers(1, 40, size=500)
    return source.tolist(), np.clip(source + generator.integers(-8, 9, size=500), 1, 40).tolist()


def sampler(lengths: Lengths, **options) -> TokenBatchSampler:
    return TokenBatchSampler(*lengths, **{"max_source_tokens": 200, "max_target_tokens": 150, "seed": 3} | options)


def padded_sizes(batch: list[int], lengths: Lengths) -> list[int]:
    return [len(batch) * max(side[i] for i in batch) for side in lengths]


def steps(
    lengths: Lengths, num_processes: int, epoch: int = 0, consumed_pairs: int = 0, start_batch: int = 0, **options
):
    """For each step the batches of all processes, which are as many for each."""
    processes = []
    for index in range(num_processes):
        each = sampler(lengths, num_processes=num_processes, process_index=index, **options)
        each.set_consumed(epoch, consumed_pairs)
        each.set_epoch(epoch, start_batch)
        processes.append(list(each))
    return list(zip(*processes, strict=True))


def flat(steps) -> list[list[int]]:
    return [batch for step in steps for batch in step]


def pairs_of(steps) -> Counter:
    return Counter(chain.from_iterable(flat(steps)))


class TestDistributeEvenly:
    @pytest.mark.parametrize(
        ("sizes", "num_processes"),
        [
            ([4, 4, 4], 2),
            ([6, 6, 6, 1], 3),  # the last cannot be halved
            ([5] + [1] * 9, 4),  # nor can any of the last nine
            ([1, 1, 2, 1, 2, 1, 1, 1, 1], 3),
            ([3], 3),
            ([1] * 6, 3),
        ],
    )
    def test_every_pair_once_and_no_empty_batch(self, sizes: list[int], num_processes: int):
        numbers = iter(range(sum(sizes)))
        groups = list(distribute_evenly([[next(numbers) for _ in range(size)] for size in sizes], num_processes))
        assert list(chain.from_iterable(flat(groups))) == list(range(sum(sizes)))
        assert all(len(group) == num_processes and all(group) for group in groups)
        assert len(groups) == -(-len(sizes) // num_processes)  # no batch is halved without need

    def test_only_batches_at_the_end_are_halved(self):
        batches = [[i, i, i] for i in range(14)]
        assert flat(distribute_evenly(batches, 4))[:12] == batches[:12]

    def test_a_stream_is_distributed_before_its_end_is_known(self):
        assert next(distribute_evenly(repeat([1, 2, 3]), 4)) == [[1, 2, 3]] * 4

    def test_too_few_pairs(self):
        with pytest.raises(
            ValueError, match="the last 4 batches, with 5 pairs in all, cannot be split evenly between 3"
        ):
            list(distribute_evenly([[1], [2], [3, 4], [5]], 3))


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

    @pytest.mark.parametrize("epoch", [0, 1, 5])
    @pytest.mark.parametrize("num_processes", [2, 3, 4, 7, 16])
    def test_order_does_not_depend_on_the_number_of_processes(self, lengths: Lengths, num_processes: int, epoch: int):
        alone, together = (flat(steps(lengths, number, epoch)) for number in (1, num_processes))
        whole = len(alone) // num_processes * num_processes
        assert together[:whole] == alone[:whole]

    @pytest.mark.parametrize("now", NUMBERS_OF_PROCESSES)
    @pytest.mark.parametrize("before", NUMBERS_OF_PROCESSES)
    def test_resuming_with_another_number_of_processes_loses_no_pair(self, lengths: Lengths, before: int, now: int):
        for epoch in (0, 3):
            whole = steps(lengths, before, epoch)
            for taken in (0, 1, len(whole) // 2, len(whole) - 1, len(whole)):
                consumed_pairs = sampler(lengths).count_consumed(epoch, before, taken)
                assert consumed_pairs == pairs_of(whole[:taken]).total()
                left = steps(lengths, now, epoch, consumed_pairs)
                assert pairs_of(whole[:taken]) + pairs_of(left) == Counter(range(500))

    @pytest.mark.parametrize("now", NUMBERS_OF_PROCESSES)
    @pytest.mark.parametrize("before", NUMBERS_OF_PROCESSES)
    def test_resuming_with_another_number_of_processes_continues_its_order(
        self, lengths: Lengths, before: int, now: int
    ):
        """After 12 batches, a multiple of either number of processes."""
        consumed_pairs = sampler(lengths).count_consumed(2, before, 12 // before)
        assert steps(lengths, now, 2, consumed_pairs) == steps(lengths, now, 2)[12 // now :]

    def test_the_number_of_processes_may_change_more_than_once_in_an_epoch(self, lengths: Lengths):
        order = sampler(lengths)
        first = steps(lengths, 3)[:4]
        order.set_consumed(0, order.count_consumed(0, 3, 4))
        second = steps(lengths, 2, consumed_pairs=order.consumed_pairs)[:7]
        order.set_consumed(0, order.count_consumed(0, 2, 7))
        third = steps(lengths, 4, consumed_pairs=order.consumed_pairs)
        resumed = steps(lengths, 4, consumed_pairs=order.consumed_pairs, start_batch=2)
        assert pairs_of(first) + pairs_of(second) + pairs_of(third) == Counter(range(500))
        assert resumed == third[2:]

    def test_pairs_consumed_in_one_epoch_come_in_the_next(self, lengths: Lengths):
        each = sampler(lengths)
        each.set_consumed(0, 70)
        each.set_epoch(1)
        assert Counter(chain.from_iterable(each)) == Counter(range(500))

    def test_too_few_pairs_left_for_more_processes(self):
        with pytest.raises(ValueError, match="the last 1 batches, with 1 pairs in all"):
            steps(([150] * 6, [150] * 6), 2, consumed_pairs=5)

    @pytest.mark.parametrize("num_processes", [1, 3])
    def test_padded_sizes_stay_within_both_budgets(self, lengths: Lengths, num_processes: int):
        for index in range(num_processes):
            for batch in sampler(lengths, num_processes=num_processes, process_index=index):
                source, target = padded_sizes(batch, lengths)
                assert source <= 200
                assert target <= 150

    def test_batches_are_as_large_as_the_budgets_allow(self, lengths: Lengths):
        """In ascending order the cuts are greedy: one more pair would exceed a budget."""
        batches = list(sampler(lengths, shuffle=False))
        for batch, following in pairwise(batches):
            source, target = padded_sizes([*batch, following[0]], lengths)
            assert source > 200 or target > 150

    def test_batches_have_less_padding_than_batches_sorted_by_the_source(self, lengths: Lengths):
        by_source: list[list[int]] = [[]]
        for pair in sorted(range(500), key=lambda i: (lengths[0][i], lengths[1][i])):
            source, target = padded_sizes([*by_source[-1], pair], lengths)
            if source > 200 or target > 150:
                by_source.append([])
            by_source[-1].append(pair)
        padded = sum(sum(padded_sizes(batch, lengths)) for batch in sampler(lengths))
        assert padded < sum(sum(padded_sizes(batch, lengths)) for batch in by_source)

    def test_unshuffled_order_is_ascending_and_the_same_in_every_epoch(self, lengths: Lengths):
        each = sampler(lengths, shuffle=False)
        first = list(each)
        longer = [max(lengths[0][i], lengths[1][i]) for batch in first for i in batch]
        assert longer == sorted(longer)
        each.set_epoch(1)
        assert list(each) == first

    def test_order_is_a_function_of_seed_and_epoch(self, lengths: Lengths):
        travelled, fresh = sampler(lengths), sampler(lengths)
        for epoch in (0, 1, 2):
            travelled.set_epoch(epoch)
        fresh.set_epoch(2)
        assert list(travelled) == list(fresh)

    def test_epochs_and_seeds_differ_in_order_and_in_composition(self, lengths: Lengths):
        first, other_epoch, other_seed = sampler(lengths), sampler(lengths), sampler(lengths, seed=4)
        other_epoch.set_epoch(1)
        compositions = [{frozenset(batch) for batch in each} for each in (first, other_epoch, other_seed)]
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

    def test_lengths_of_consecutive_batches_are_uncorrelated(self, lengths: Lengths):
        """Gradients of batches of similar length are alike: in a row they are worth less than in random order."""
        correlations = []
        for seed in range(20):
            longest = [max(lengths[0][i] for i in batch) for batch in sampler(lengths, seed=seed)]
            correlations.append(np.corrcoef(longest[:-1], longest[1:])[0, 1])
        assert abs(np.mean(correlations)) < 0.1

    def test_processes_get_about_equal_padded_tokens_in_a_step(self, lengths: Lengths):
        """Except in the last step, whose batches may have been halved."""
        for step in steps(lengths, 4)[:-1]:
            padded = sorted(max(padded_sizes(batch, lengths)) for batch in step)
            assert padded[0] > 0.6 * padded[-1]

    def test_fraction_consumed_counts_pairs(self, lengths: Lengths):
        each = sampler(lengths, num_processes=2)
        each.set_consumed(1, 100)
        each.set_epoch(1)
        taken = pairs_of(steps(lengths, 2, 1, consumed_pairs=100)[:3]).total()
        assert each.fraction_consumed(0) == pytest.approx(100 / 500)
        assert each.fraction_consumed(3) == pytest.approx((100 + taken) / 500)

    def test_padding_share(self, lengths: Lengths):
        each = sampler(lengths)
        padded = sum(sum(padded_sizes(batch, lengths)) for batch in each)
        assert each.padding_share() == pytest.approx(1 - sum(map(sum, lengths)) / padded)

    def test_batches_have_little_padding(self, lengths: Lengths):
        """Batches of random pairs would be more than a third padding."""
        assert sampler(lengths).padding_share() < 0.15

    def test_takes_columns_of_datasets(self, lengths: Lengths):
        columns = Dataset.from_dict({"s": lengths[0], "t": lengths[1]})
        assert list(sampler((columns["s"], columns["t"]))) == list(sampler(lengths))

    @pytest.mark.parametrize(("side", "index"), [("source", 0), ("target", 1)])
    def test_a_pair_beyond_the_budget_is_named(self, side: str, index: int):
        lengths = [[1, 1, 1], [1, 1, 1]]
        lengths[index][1] = 500
        with pytest.raises(ValueError, match=f"pair 1 has 500 {side} tokens.*max_{side}_tokens=.*data.max_length"):
            sampler((lengths[0], lengths[1]))

    def test_fewer_pairs_than_processes(self):
        with pytest.raises(ValueError, match="2 pairs in all, cannot be split evenly between 3"):
            sampler(([1, 1], [1, 1]), num_processes=3)

    def test_no_pairs(self):
        with pytest.raises(ValueError, match="no pairs"):
            sampler(([], []))

    def test_too_few_pairs_to_halve_batches(self):
        with pytest.raises(ValueError, match="the last 5 batches, with 5 pairs in all, cannot be split"):
            sampler(([150] * 5, [150] * 5), num_processes=2)


class TestShards:
    """A corpus of several shards keeps every promise of one that fits."""

    @pytest.fixture(autouse=True)
    def shards(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(batches, "PAIRS_PER_SHARD", 128)
        monkeypatch.setattr(batches, "PAIRS_PER_RUN", 8)

    @pytest.mark.parametrize("shuffle", [False, True])
    @pytest.mark.parametrize("num_processes", [1, 2, 3])
    def test_every_pair_once_within_both_budgets(self, lengths: Lengths, num_processes: int, shuffle: bool):
        assert sampler(lengths).shards == 4
        found = steps(lengths, num_processes, epoch=1, shuffle=shuffle)
        assert pairs_of(found) == Counter(range(500))
        for batch in flat(found):
            source, target = padded_sizes(batch, lengths)
            assert source <= 200
            assert target <= 150

    def test_order_is_a_function_of_seed_and_epoch(self, lengths: Lengths):
        orders = [flat(steps(lengths, 1, epoch, seed=seed)) for seed, epoch in ((3, 0), (3, 0), (3, 1), (4, 0))]
        assert orders[0] == orders[1]
        assert orders[1] != orders[2] != orders[3] != orders[1]

    def test_a_shard_draws_from_the_whole_corpus(self, lengths: Lengths):
        first = list(chain.from_iterable(flat(steps(lengths, 1))))[:120]
        assert len({number // 100 for number in first}) == 5

    @pytest.mark.parametrize("now", NUMBERS_OF_PROCESSES)
    @pytest.mark.parametrize("before", NUMBERS_OF_PROCESSES)
    def test_resuming_in_any_shard_continues_the_order(self, lengths: Lengths, before: int, now: int):
        order, together = flat(steps(lengths, 1, 2)), steps(lengths, before, 2)
        for taken in (0, 1, len(together) // 2, len(together) - 3):
            consumed_pairs = sampler(lengths).count_consumed(2, before, taken)
            left = steps(lengths, now, 2, consumed_pairs)
            assert pairs_of(together[:taken]) + pairs_of(left) == Counter(range(500))
            whole = len(flat(left)) - 2 * now  # the last ones may be halved
            assert flat(left)[:whole] == order[taken * before :][:whole]

    def test_resuming_skips_the_first_batches(self, lengths: Lengths):
        assert steps(lengths, 2, 3, start_batch=9) == steps(lengths, 2, 3)[9:]

    def test_number_of_batches_and_fraction_are_near_the_true_ones(self, lengths: Lengths):
        each = sampler(lengths, num_processes=2)
        number = len(list(each))
        assert len(each) == pytest.approx(number, rel=0.1)
        assert each.fraction_consumed(number // 2) == pytest.approx(0.5, abs=0.1)
        assert each.fraction_consumed(2 * number) == 1

    def test_memory_does_not_hold_the_other_shards(self, lengths: Lengths):
        assert sum(map(len, sampler(lengths).first_shard)) <= 128


class TestStreamingTokenBatches:
    def batches(self, lengths: Lengths, **options) -> StreamingTokenBatches:
        """Tokens are the pair's number, as often as its side is long."""
        sides = zip(("input_ids", "labels"), lengths, strict=True)
        rows = {name: [[number] * length for number, length in enumerate(side)] for name, side in sides}
        stream = Dataset.from_dict(rows).to_iterable_dataset()
        defaults = {"max_source_tokens": 200, "max_target_tokens": 150, "seed": 3, "pool_size": 120}
        return StreamingTokenBatches(stream, **defaults | options)

    @staticmethod
    def numbers(batches: StreamingTokenBatches) -> list[list[int]]:
        return [[row["input_ids"][0] for row in batch] for batch in batches]

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

    def steps(self, lengths: Lengths, num_processes: int, epoch: int = 0, consumed_pairs: int = 0, **options):
        processes = []
        for index in range(num_processes):
            each = self.batches(lengths, num_processes=num_processes, process_index=index, **options)
            each.set_consumed(epoch, consumed_pairs)
            each.set_epoch(epoch)
            processes.append(self.numbers(each))
        return list(zip(*processes, strict=True))

    @pytest.mark.parametrize("pool_size", [120, 499])  # the last pool has 20 pairs, or 1
    @pytest.mark.parametrize("num_processes", [2, 3, 4])
    def test_order_does_not_depend_on_the_number_of_processes(
        self, lengths: Lengths, num_processes: int, pool_size: int
    ):
        alone, together = (self.steps(lengths, number, epoch=2, pool_size=pool_size) for number in (1, num_processes))
        assert pairs_of(together) == Counter(range(500))
        whole = len(flat(together)) - 2 * num_processes  # the last ones may be halved
        assert flat(together)[:whole] == flat(alone)[:whole]

    @pytest.mark.parametrize(("before", "now"), [(1, 2), (2, 1), (3, 2), (2, 4), (4, 3)])
    def test_resuming_with_another_number_of_processes_loses_no_pair(self, lengths: Lengths, before: int, now: int):
        whole = self.steps(lengths, before, epoch=1)
        for taken in (len(whole) // 2, len(whole) - 2):  # a single pair could not be distributed
            consumed_pairs = self.batches(lengths).count_consumed(1, before, taken)
            left = self.steps(lengths, now, 1, consumed_pairs)
            assert pairs_of(whole[:taken]) + pairs_of(left) == Counter(range(500))

    def test_fewer_pairs_than_processes(self):
        with pytest.raises(ValueError, match="2 pairs in all, cannot be split evenly between 3"):
            self.steps(([1, 1], [1, 1]), 3)

    def test_a_stream_without_pairs(self):
        def nothing():
            yield from ()

        stream = IterableDataset.from_generator(nothing)
        with pytest.raises(ValueError, match="no pair to train on"):
            list(StreamingTokenBatches(stream, max_source_tokens=9, max_target_tokens=9, seed=1))
