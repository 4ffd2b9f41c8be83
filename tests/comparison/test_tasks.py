# SPDX-License-Identifier: Apache-2.0
"""The synthetic tasks, against other implementations of them."""

import pytest
import torch

from vanilla_transformer.comparison.tasks import (
    ALPHABET,
    FIRST_KEY,
    FIRST_PAIR,
    FIRST_SYMBOL,
    FIRST_VALUE,
    TASKS,
    VOCAB_SIZE,
    batch_at_distance,
    copy,
    parity,
    recall,
)


def seeded(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def distances_of_the_query(sequence: list[int]) -> list[int]:
    """Steps from each pair with the queried key to the query, the last symbol."""
    *pairs, query = sequence
    keys = [(pair - FIRST_PAIR) // ALPHABET for pair in pairs]
    return [len(pairs) - index for index, key in enumerate(keys) if key == query - FIRST_KEY]


def test_the_target_of_copy_is_its_source():
    input_ids, labels = copy(5, 7, seeded())
    assert input_ids.shape == (5, 7)
    assert labels.tolist() == input_ids.tolist()


@pytest.mark.parametrize("distance", [1, 2, 5])
def test_recall_has_one_matching_pair_at_the_distance(distance: int):
    input_ids, labels = recall(50, 5, seeded(), distance)
    assert input_ids.shape == (50, 5 + 1)
    for sequence, (value,) in zip(input_ids.tolist(), labels.tolist(), strict=True):
        assert distances_of_the_query(sequence) == [distance]
        assert (sequence[-1 - distance] - FIRST_PAIR) % ALPHABET == value - FIRST_VALUE


def test_recall_without_a_distance_queries_every_pair():
    input_ids, labels = recall(100, 4, seeded())
    distances = [distances_of_the_query(sequence) for sequence in input_ids.tolist()]
    assert {len(found) for found in distances} == {1}
    assert {distance for (distance,) in distances} == {1, 2, 3, 4}
    pairs = input_ids.gather(1, torch.tensor([[4 - distance] for (distance,) in distances]))
    assert ((pairs - FIRST_PAIR) % ALPHABET).tolist() == (labels - FIRST_VALUE).tolist()


def test_the_target_of_parity_is_the_parity_of_the_ones():
    input_ids, labels = parity(50, 6, seeded())
    ones = [row.count(FIRST_SYMBOL + 1) for row in input_ids.tolist()]
    assert labels.tolist() == [[FIRST_SYMBOL + count % 2] for count in ones]


def test_the_number_of_ones_in_parity_is_uniform_and_their_places_are_random():
    input_ids, _ = parity(7000, 6, seeded())
    bits = input_ids == FIRST_SYMBOL + 1
    counts = bits.sum(dim=1).bincount(minlength=7)
    assert counts.tolist() == pytest.approx([1000] * 7, rel=0.15)
    assert bits.float().mean(dim=0).tolist() == pytest.approx([0.5] * 6, abs=0.03)


@pytest.mark.parametrize("task", TASKS)
def test_symbols_are_in_the_vocabulary_and_not_special(task: str):
    for tensor in TASKS[task](500, 8, seeded()):
        assert tensor.min() >= FIRST_SYMBOL
        assert tensor.max() < VOCAB_SIZE


@pytest.mark.parametrize("task", TASKS)
def test_a_seed_determines_the_batch(task: str):
    first, again, other = (TASKS[task](20, 8, seeded(seed)) for seed in (1, 1, 2))
    assert first[0].tolist() == again[0].tolist()
    assert first[0].tolist() != other[0].tolist()


@pytest.mark.parametrize("task", ["copy", "parity"])
def test_copy_and_parity_are_as_long_as_the_distance(task: str):
    assert batch_at_distance(task, 2, 9, seeded())[0].shape == (2, 9)


@pytest.mark.parametrize("distance", [1, 9])
def test_recall_has_as_many_pairs_as_the_distance_and_queries_the_first(distance: int):
    input_ids, _ = batch_at_distance("recall", 20, distance, seeded())
    assert input_ids.shape == (20, distance + 1)
    assert all(distances_of_the_query(sequence) == [distance] for sequence in input_ids.tolist())


def test_parity_is_tested_on_as_many_even_as_odd_sequences():
    input_ids, labels = batch_at_distance("parity", 50, 7, seeded())
    assert labels.tolist() == [[FIRST_SYMBOL + row.count(FIRST_SYMBOL + 1) % 2] for row in input_ids.tolist()]
    assert labels.flatten().tolist().count(FIRST_SYMBOL) == 25
