# SPDX-License-Identifier: Apache-2.0
"""The garbage collector rests while a program imports, and works afterwards."""

import gc

import pytest

from vanilla_transformer.console.fast_imports import without_garbage_collection


@pytest.mark.parametrize("error", [None, ImportError])
def test_collection_goes_on_afterwards_without_what_was_imported(error):
    try:
        with without_garbage_collection():
            assert not gc.isenabled()
            imported = [[]]
            if error:
                raise error
    except ImportError:
        pass
    assert gc.isenabled()
    assert not any(thing is imported for thing in gc.get_objects())  # it is frozen


def test_a_command_leaves_no_frozen_objects_to_the_next_test():
    """tests/conftest.py undoes it: a cycle that is frozen would never be collected."""
    assert gc.get_freeze_count() == 0
