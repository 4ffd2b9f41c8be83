# SPDX-License-Identifier: Apache-2.0
"""Tables of names: patterns, parts, parameters that are left out, and errors."""

import pytest
import torch

from vanilla_transformer.importing.names import DECODER, ENCODER, HEAD, fill_tied, rename

TABLE = {"a.{layer}.x": "b.{layer}.y", "fused.{layer}": ["q.{layer}", "k.{layer}"], "version": None, "v.{i}": "y"}


def test_patterns_keep_numbers_and_suffixes():
    weights = {"a.12.x.weight": torch.ones(2), "a.0.x.bias": torch.ones(3), "version": torch.ones(1)}
    assert {name: len(tensor) for name, tensor in rename(weights, TABLE, "it").items()} == {
        "b.12.y.weight": 2,
        "b.0.y.bias": 3,
    }


def test_a_fused_parameter_is_divided_by_rows():
    renamed = rename({"fused.3.weight": torch.arange(8).view(4, 2)}, TABLE, "it")
    assert renamed["q.3.weight"].tolist() == [[0, 1], [2, 3]]
    assert renamed["k.3.weight"].tolist() == [[4, 5], [6, 7]]
    assert renamed["k.3.weight"].dtype == torch.float32


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"a.b.x.weight": torch.ones(2)}, r"^it has a parameter a\.b\.x\.weight \(2,\), which is no part of this"),
        ({"fused.0.bias": torch.ones(3)}, r"^it: the 3 rows of fused\.0\.bias do not divide by 2"),
        ({"a.0.x.bias": 3}, r"^it has a\.0\.x\.bias, which is no tensor but int"),
        ({"v.0": torch.ones(1), "v.1": torch.ones(1)}, r"^it has two parameters for y, v\.1 is the second"),
    ],
)
def test_what_the_table_cannot_place_is_an_error(weights, message):
    with pytest.raises(ValueError, match=message):
        rename(weights, TABLE, "it")


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        ((ENCODER,), "eee"),
        ((DECODER,), "ddd"),
        ((ENCODER, DECODER), "edd"),
        ((ENCODER, HEAD), "ehh"),
        ((ENCODER, DECODER, HEAD), "edh"),
    ],
)
def test_embeddings_that_the_source_ties_are_filled_in(stored, expected):
    letters = {ENCODER: "e", DECODER: "d", HEAD: "h"}
    filled = fill_tied({f"{name}.weight": torch.tensor([ord(letters[name])]) for name in stored})
    assert "".join(chr(int(filled[f"{name}.weight"])) for name in (ENCODER, DECODER, HEAD)) == expected
