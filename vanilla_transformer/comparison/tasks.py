# SPDX-License-Identifier: Apache-2.0
"""Synthetic sequence-to-sequence problems that say how far apart what is asked and what answers it are.

All tasks share one vocabulary, so that a model has the same number of parameters in each. A batch has one length,
hence no padding, and every target symbol counts for accuracy. The random generator lives on the CPU, so that a seed
means the same sequences on every device.
"""

from collections.abc import Callable

import torch

FIRST_SYMBOL = 3  # 0 pads, 1 starts the target, 2 ends it: the models' defaults
ALPHABET = 8  # the symbols of copy; the first two are the bits of parity
# Then those of recall: every pair of a key and a value, the keys alone and the values alone.
FIRST_PAIR = FIRST_SYMBOL + ALPHABET
FIRST_KEY = FIRST_PAIR + ALPHABET**2
FIRST_VALUE = FIRST_KEY + ALPHABET
VOCAB_SIZE = FIRST_VALUE + ALPHABET


def copy(batch: int, length: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """`length` random symbols; the target is the same, so that each comes back `length` steps after it was told.

    Returns:
        `input_ids` and `labels`, both `(batch, length)`. Guessing is right once in 8.
    """
    symbols = torch.randint(FIRST_SYMBOL, FIRST_SYMBOL + ALPHABET, (batch, length), generator=generator)
    return symbols, symbols.clone()


def recall(
    batch: int, length: int, generator: torch.Generator, distance: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Associative recall: pairs of a key and a value, then a key; the target is the value that came with it.

    A pair is one symbol, as if its two halves had been brought together already: with symbols of their own, none of
    the models learnt the task in thousands of updates. The key that is asked for stands in one pair; other keys may
    come again.

    Args:
        length: pairs.
        distance: steps from the pair that answers to the key that asks: 1 is the last pair. `None`: random, in each
            sequence anew.

    Returns:
        `input_ids` `(batch, length + 1)` and `labels` `(batch, 1)`. Guessing is right once in 8.
    """
    if distance is None:
        answers_at = torch.randint(length, (batch, 1), generator=generator)  # (batch, 1)
    else:
        answers_at = torch.full((batch, 1), length - distance)  # (batch, 1)
    asked = torch.randint(ALPHABET, (batch, 1), generator=generator)  # (batch, 1)
    # Any key but the one that is asked for: so many steps further round the alphabet, and never the whole way.
    steps = torch.randint(1, ALPHABET, (batch, length), generator=generator)  # (batch, length)
    keys = (asked + steps.scatter(1, answers_at, 0)) % ALPHABET  # (batch, length)
    values = torch.randint(ALPHABET, (batch, length), generator=generator)  # (batch, length)
    input_ids = torch.cat([FIRST_PAIR + ALPHABET * keys + values, FIRST_KEY + asked], dim=1)
    return input_ids, FIRST_VALUE + values.gather(1, answers_at)


def parity(batch: int, length: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """State tracking: `length` random bits; the target says whether the number of ones is odd.

    The answer hangs on every bit, the first one `length` steps before it. Zero and even are the first symbol, one and
    odd the second.

    Returns:
        `input_ids` `(batch, length)` and `labels` `(batch, 1)`. Guessing is right half the time.
    """
    bits = torch.randint(2, (batch, length), generator=generator)  # (batch, length)
    return FIRST_SYMBOL + bits, FIRST_SYMBOL + bits.sum(dim=1, keepdim=True) % 2


# name → (sequences, length, generator) → input_ids, labels
TASKS: dict[str, Callable[[int, int, torch.Generator], tuple[torch.Tensor, torch.Tensor]]] = {
    "copy": copy,
    "recall": recall,
    "parity": parity,
}

CHANCE = {"copy": 1 / ALPHABET, "recall": 1 / ALPHABET, "parity": 1 / 2}  # what guessing gets right


def training_batch(
    task: str, batch: int, trained_at: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch of a length drawn from 1 to `trained_at`: the short ones are where learning begins."""
    length = int(torch.randint(1, trained_at + 1, (), generator=generator))
    return TASKS[task](batch, length, generator)


def batch_at_distance(
    task: str, batch: int, distance: int, trained_at: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch in which the answer, or the farthest part of it, was told `distance` steps before.

    Recall always has `trained_at` pairs, or more where the distance needs them; copy and parity have one symbol for
    each step.
    """
    if task == "parity":  # as many even as odd ones: a model that always says the same is right half the time
        bits, answers = parity(batch, distance, generator)
        wrong = answers[:, 0] != FIRST_SYMBOL + torch.arange(batch) % 2  # (batch)
        bits[wrong, -1] = 2 * FIRST_SYMBOL + 1 - bits[wrong, -1]
        return bits, FIRST_SYMBOL + (bits - FIRST_SYMBOL).sum(dim=1, keepdim=True) % 2
    if task == "recall":
        return recall(batch, max(distance, trained_at), generator, distance)
    return TASKS[task](batch, distance, generator)
