# SPDX-License-Identifier: Apache-2.0
"""Batches against transformers' collator and the rows that they are made of."""

import threading

import pytest
import torch
from transformers import AutoTokenizer, DataCollatorForSeq2Seq

from vanilla_transformer.training.batch import BATCHES_AHEAD, Batch, PreparedAhead, collate

ROWS = [{"input_ids": [5, 6, 2], "labels": [7, 2]}, {"input_ids": [4, 2], "labels": [8, 9, 5, 2]}]


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_batch_is_padded_as_transformers_pads_it(model_folder, side):
    tokenizer = AutoTokenizer.from_pretrained(model_folder, padding_side=side)
    expected = DataCollatorForSeq2Seq(tokenizer)([dict(row) for row in ROWS])
    found = collate(ROWS, tokenizer)
    assert list(found) == list(expected)
    for name, tensor in found.items():
        assert torch.equal(tensor, expected[name])
        assert tensor.dtype == expected[name].dtype


def test_tokens_are_counted_without_padding(model_folder):
    batch = collate(ROWS, AutoTokenizer.from_pretrained(model_folder))
    assert (batch.source_tokens, batch.target_tokens, batch.positions()) == (5, 6, 2 * 3 + 2 * 4)
    assert batch.is_padded()
    assert not collate(ROWS[:1], AutoTokenizer.from_pretrained(model_folder)).is_padded()


@pytest.mark.parametrize("pairs", [0, 1, 2])
def test_split_batches_leave_out_no_pair_and_have_one_at_least(model_folder, pairs):
    batch = collate(ROWS, AutoTokenizer.from_pretrained(model_folder))
    parts = batch.split(pairs)
    for name, tensor in batch.items():
        assert torch.equal(torch.cat([part[name] for part in parts]), tensor)
    assert sum(part.target_tokens for part in parts) == batch.target_tokens
    assert all(len(part["labels"]) for part in parts)


def numbered(number: int) -> Batch:
    one = torch.full((1, 1), number)
    return Batch({"input_ids": one, "attention_mask": torch.ones_like(one), "labels": one})


def test_batches_are_prepared_ahead_in_their_order_by_another_thread():
    threads = []

    def loader():
        for number in range(10):
            threads.append(threading.current_thread())
            yield numbered(number)

    assert [batch["labels"].item() for batch in PreparedAhead(loader())] == [*range(10)]
    assert threading.main_thread() not in threads


def test_an_error_of_the_loader_comes_after_the_batches_before_it():
    def loader():
        yield from map(numbered, range(BATCHES_AHEAD - 1))
        raise ValueError("the stream is broken")

    batches = iter(PreparedAhead(loader()))
    assert [next(batches)["labels"].item() for _ in range(BATCHES_AHEAD - 1)] == [*range(BATCHES_AHEAD - 1)]
    with pytest.raises(ValueError, match="the stream is broken"):
        next(batches)


def test_no_more_batches_are_read_once_the_loop_has_ended():
    read = []

    def loader():
        for number in range(1000):
            read.append(number)
            yield numbered(number)

    batches = iter(PreparedAhead(loader()))
    next(batches)
    del batches  # as when the loop breaks
    assert len(read) <= BATCHES_AHEAD + 1
    assert not any(thread.name.startswith("batches") for thread in threading.enumerate())


@pytest.mark.parametrize("side", ["right", "left"])
def test_links_share_one_among_the_source_tokens_of_each_target_token(model_folder, side):
    tokenizer = AutoTokenizer.from_pretrained(model_folder, padding_side=side)
    links = [[0, 0, 1, 0], [0, 1, 1, 2]]  # source and target of each
    batch = collate([row | {"links": own} for row, own in zip(ROWS, links, strict=True)], tokenizer)
    assert batch["links"].shape == (2, 4, 3)
    expected = torch.zeros(2, 4, 3)
    source, target = (0, 0) if side == "right" else (1, 2)  # padding before the second source, the first target
    expected[0, target, :2] = 0.5
    expected[1, 1, source] = expected[1, 2, source + 1] = 1
    assert torch.equal(batch["links"], expected)
    assert torch.equal(torch.cat([half["links"] for half in batch.halves()]), batch["links"])
