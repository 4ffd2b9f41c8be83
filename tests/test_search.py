# SPDX-License-Identifier: Apache-2.0
"""Parts of the search; as a whole it is tested by `generate` in test_generation.py."""

import pytest
import torch

from vanilla_transformer.search import blockwise_topk, coverage_penalty


def test_coverage_counts_real_tokens_only():
    coverage = torch.tensor([[[0.5, 2.0, 0.1]]])
    found = coverage_penalty(coverage, torch.tensor([[1, 1, 0]]))
    assert found.item() == pytest.approx(torch.tensor(0.5).log().item())  # min(2, 1) is 1, and log(1) is 0


@pytest.mark.parametrize("width", [2**18, 2**18 + 77])
@pytest.mark.parametrize("count", [1, 8])
def test_blockwise_topk_is_topk(width, count):
    values = torch.randn(4, width)
    values[1, -1] = 100.0  # after the last whole block
    values[2, 5:9] = 100.0 + torch.arange(4.0)  # in one block
    values[3, 7] = torch.nan
    found, expected = blockwise_topk(values, count), values.topk(count)
    assert torch.equal(found[1], expected.indices)
    assert torch.equal(found[0].nan_to_num(), expected.values.nan_to_num())
