# SPDX-License-Identifier: Apache-2.0
from vanilla_transformer.training.reporting import truncate


def test_long_outputs_are_truncated():
    assert truncate("la " * 1000, max_length=10) == "la la la l …"
    assert truncate("la la", max_length=10) == "la la"
