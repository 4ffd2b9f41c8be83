# SPDX-License-Identifier: Apache-2.0
"""Synthetic tasks for long-range dependencies: the copy task, associative recall and parity.

All tasks share one vocabulary, so that a model has the same number of parameters in each. A batch has one length,
hence no padding, and every target symbol counts for accuracy. The random generator lives on the CPU, so that a seed
gives the same sequences on every device.
"""

from collections.abc import Callable

import torch

FIRST_SYMBOL = 3  # 0 pads, 1 starts the target, 2 ends it: the models' defaults
ALPHABET = 8  # number of symbols of the copy task; the first two are the bits of parity
# Associative recall has a symbol for each (key, value) pair, each key and each value.
FIRST_PAIR = FIRST_SYMBOL + ALPHABET
FIRST_KEY = FIRST_PAIR + ALPHABET**2
FIRST_VALUE = FIRST_KEY + ALPHABET
VOCAB_SIZE = FIRST_VALUE + ALPHABET

Batch = tuple[torch.Tensor, torch.Tensor]  # input_ids, labels


def copy(batch: int, length: int, generator: torch.Generator) -> Batch:
    """The copy task: the target repeats `length` random symbols, each `length` steps after it was read.

    Returns:
        `input_ids` and `labels`, both `(batch, length)`. Chance accuracy is 1/8.
    """
    symbols = torch.randint(FIRST_SYMBOL, FIRST_SYMBOL + ALPHABET, (batch, length), generator=generator)
    return symbols, symbols.clone()


def recall(batch: int, length: int, generator: torch.Generator, distance: int | None = None) -> Batch:
    """Associative recall: key-value pairs, then a query key; the target is the value paired with it.

    A pair is one symbol: with separate symbols for key and value, none of the models learnt the task in thousands of
    updates. The query key stands in one pair; other keys may repeat.

    Args:
        length: pairs.
        distance: steps from the queried pair to the query: 1 is the last pair. `None`: random for each sequence.

    Returns:
        `input_ids` `(batch, length + 1)` and `labels` `(batch, 1)`. Chance accuracy is 1/8.
    """
    if distance is None:
        target_index = torch.randint(length, (batch, 1), generator=generator)  # (batch, 1)
    else:
        target_index = torch.full((batch, 1), length - distance)  # (batch, 1)
    query = torch.randint(ALPHABET, (batch, 1), generator=generator)  # (batch, 1)
    # The other keys are the query plus 1 to ALPHABET - 1, modulo ALPHABET: never the query itself.
    offsets = torch.randint(1, ALPHABET, (batch, length), generator=generator)  # (batch, length)
    keys = (query + offsets.scatter(1, target_index, 0)) % ALPHABET  # (batch, length)
    values = torch.randint(ALPHABET, (batch, length), generator=generator)  # (batch, length)
    input_ids = torch.cat([FIRST_PAIR + ALPHABET * keys + values, FIRST_KEY + query], dim=1)
    return input_ids, FIRST_VALUE + values.gather(1, target_index)


def parity(batch: int, length: int, generator: torch.Generator) -> Batch:
    """Parity, a state-tracking task: the target says whether `length` bits have an odd number of ones.

    The target depends on every bit, the first one `length` steps before it. The first symbol stands for zero and even,
    the second for one and odd. The number of ones is uniform from 0 to `length`; their places are random. With fair
    bits of one length no recurrent network learnt the task in 1,000 updates, even of 4 bits. Sparse sequences among
    dense ones make it learnable (Abbe, Cornacchia and Lotfi, 2023, arXiv:2306.16921).

    In an even length zeros and ones have the same parity: trained there, a model may have learnt either. Test it at
    even lengths.

    Returns:
        `input_ids` `(batch, length)` and `labels` `(batch, 1)`. Chance accuracy is 1/2.
    """
    ones = torch.randint(length + 1, (batch, 1), generator=generator)  # (batch, 1)
    ranks = torch.rand((batch, length), generator=generator).argsort(dim=1).argsort(dim=1)  # (batch, length)
    bits = (ranks < ones).long()  # (batch, length)
    return FIRST_SYMBOL + bits, FIRST_SYMBOL + bits.sum(dim=1, keepdim=True) % 2


TASKS: dict[str, Callable[[int, int, torch.Generator], Batch]] = {"copy": copy, "recall": recall, "parity": parity}
CHANCE = {"copy": 1 / ALPHABET, "recall": 1 / ALPHABET, "parity": 1 / 2}  # chance accuracy


def batch_at_distance(task: str, batch: int, distance: int, generator: torch.Generator) -> Batch:
    """A batch whose targets depend on a symbol `distance` steps before them: as many symbols, pairs or bits.

    In recall the query is for the first pair. In parity as many targets are even as odd: a constant answer has chance
    accuracy.
    """
    if task == "recall":
        return recall(batch, distance, generator, distance)
    if task == "parity":
        bits, labels = parity(batch, distance, generator)
        balanced = FIRST_SYMBOL + torch.arange(batch)[:, None] % 2  # (batch, 1)
        bits[:, -1:] = torch.where(labels == balanced, bits[:, -1:], 2 * FIRST_SYMBOL + 1 - bits[:, -1:])
        return bits, balanced
    return TASKS[task](batch, distance, generator)
