# SPDX-License-Identifier: Apache-2.0
"""Parallel batches: the same results in the same order, and afterwards the same threads."""

import threading

import pytest
import torch

from vanilla_transformer.inference.native.parallel_batches import parallel_batches


@pytest.fixture(autouse=True)
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def test_results_come_in_the_order_of_the_batches():
    """Though the first ends last."""
    others_are_done = threading.Barrier(2)

    def square(number: int) -> int:
        if number in (0, 2):
            others_are_done.wait(timeout=60)
        return number**2

    assert list(parallel_batches(square, [0, 1, 2, 3, 4, 5], 3)) == [0, 1, 4, 9, 16, 25]


@pytest.mark.parametrize(("batches", "at_once", "of_each"), [(7, 3, 1), (2, 2, 1), (1, 1, 3)])
def test_threads_are_shared_by_the_batches(batches: int, at_once: int, of_each: int):
    together = threading.Barrier(at_once)

    def threads_here(_: int) -> int:
        if together.n_waiting or not is_met:
            together.wait(timeout=60)
            is_met.append(True)
        return torch.get_num_threads()

    is_met: list[bool] = []
    assert list(parallel_batches(threads_here, range(batches), 3)) == [of_each] * batches
    assert torch.get_num_threads() == 3


def test_the_first_error_is_raised_and_batches_not_yet_begun_never_are():
    begun = []
    goes_on = threading.Event()

    def fail_at_one(number: int) -> None:
        begun.append(number)
        if number == 1:
            raise ValueError("one")
        if number == 2:  # until the error has arrived
            goes_on.wait(timeout=60)

    found = parallel_batches(fail_at_one, range(100), 3)
    assert next(found) is None
    goes_on.set()
    with pytest.raises(ValueError, match="one"):
        list(found)
    assert torch.get_num_threads() == 3


def test_no_batches_have_no_results():
    assert list(parallel_batches(str, [], 3)) == []
