# SPDX-License-Identifier: Apache-2.0
"""The synthetic tasks, solved by hand."""

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
    training_batch,
)


def seeded(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def places_of_the_answer(question: list[int]) -> list[int]:
    """Steps before the last symbol, a key, at which this key stands in a pair."""
    *told, asked = question
    keys = [(pair - FIRST_PAIR) // ALPHABET for pair in told]
    return [len(told) - place for place, key in enumerate(keys) if key == asked - FIRST_KEY]


def test_copy_asks_for_what_it_tells():
    input_ids, labels = copy(5, 7, seeded())
    assert input_ids.shape == (5, 7)
    assert labels.tolist() == input_ids.tolist()


@pytest.mark.parametrize("distance", [1, 2, 5])
def test_recall_has_one_answer_at_the_distance(distance: int):
    input_ids, labels = recall(50, 5, seeded(), distance)
    assert input_ids.shape == (50, 5 + 1)
    for question, (value,) in zip(input_ids.tolist(), labels.tolist(), strict=True):
        assert places_of_the_answer(question) == [distance]
        assert (question[-1 - distance] - FIRST_PAIR) % ALPHABET == value - FIRST_VALUE


def test_recall_without_a_distance_asks_for_any_pair():
    input_ids, labels = recall(100, 4, seeded())
    places = [places_of_the_answer(question) for question in input_ids.tolist()]
    assert {len(found) for found in places} == {1}
    assert {place for (place,) in places} == {1, 2, 3, 4}
    told = input_ids.gather(1, torch.tensor([[4 - place] for (place,) in places]))
    assert ((told - FIRST_PAIR) % ALPHABET).tolist() == (labels - FIRST_VALUE).tolist()


def test_parity_says_whether_the_ones_are_odd():
    input_ids, labels = parity(50, 6, seeded())
    ones = [row.count(FIRST_SYMBOL + 1) for row in input_ids.tolist()]
    assert labels.tolist() == [[FIRST_SYMBOL + count % 2] for count in ones]
    assert {1, 2, 3} <= set(ones)


@pytest.mark.parametrize("task", TASKS)
def test_all_symbols_are_in_the_vocabulary_and_none_is_special(task: str):
    for tensor in TASKS[task](500, 8, seeded()):
        assert tensor.min() >= FIRST_SYMBOL
        assert tensor.max() < VOCAB_SIZE


@pytest.mark.parametrize("task", TASKS)
def test_a_seed_is_a_batch(task: str):
    first, again, other = (TASKS[task](20, 8, seeded(seed)) for seed in (1, 1, 2))
    assert first[0].tolist() == again[0].tolist()
    assert first[0].tolist() != other[0].tolist()


def test_training_draws_all_lengths_up_to_the_longest():
    generator = seeded()
    lengths = {training_batch("copy", 1, 4, generator)[0].shape[1] for _ in range(100)}
    assert lengths == {1, 2, 3, 4}


@pytest.mark.parametrize("task", ["copy", "parity"])
def test_testing_is_as_long_as_the_distance(task: str):
    assert batch_at_distance(task, 2, 9, 4, seeded())[0].shape == (2, 9)


@pytest.mark.parametrize(("distance", "pairs"), [(2, 4), (9, 9)])
def test_testing_recall_is_longer_than_training_only_where_it_must_be(distance: int, pairs: int):
    input_ids, _ = batch_at_distance("recall", 20, distance, 4, seeded())
    assert input_ids.shape == (20, pairs + 1)
    assert all(places_of_the_answer(question) == [distance] for question in input_ids.tolist())
