# SPDX-License-Identifier: Apache-2.0
"""Equation 1 by tiles is the plain product: outputs and gradients."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention as torch_attention

from tests.families import FAMILIES
from vanilla_transformer import attention, tiled_attention
from vanilla_transformer.attention import scaled_dot_product_attention as plain_product
from vanilla_transformer.tiled_attention import is_faster_in_tiles

BATCH, HEADS, LENGTH, D_K, D_V = 3, 4, 13, 8, 6
CAUSAL, FULL = (SimpleNamespace(is_causal=is_causal, training=True) for is_causal in (True, False))
LATER = torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1)


@pytest.fixture(params=[(2**20, 128), (400, 5), (4, 1)], ids=["one tile", "ragged tiles", "a row of a head"])
def tiles(request, monkeypatch):
    monkeypatch.setattr(tiled_attention, "TILE_BYTES", request.param[0])
    monkeypatch.setattr(tiled_attention, "CAUSAL_ROWS", request.param[1])


def inputs(keys: int = LENGTH, dtype: torch.dtype = torch.float32, d_v: int = D_V) -> list[torch.Tensor]:
    """Query, key and value with the strides of the module: heads are cut out of rows."""
    torch.manual_seed(0)
    sizes = (LENGTH, D_K), (keys, D_K), (keys, d_v)
    tensors = [torch.randn(BATCH, length, HEADS, width, dtype=dtype).transpose(1, 2) for length, width in sizes]
    return [tensor.requires_grad_() for tensor in tensors]


def padding(keys: int = LENGTH) -> torch.Tensor:
    """Each sentence with another number of real keys."""
    real = torch.arange(keys) < torch.tensor([keys, 5, 1])[:, None]
    return real[:, None, None].expand(BATCH, 1, LENGTH, keys)


def outputs_and_gradients(function, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    output = function(*tensors)
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
    return [output, *torch.autograd.grad((output * weights).sum(), tensors)]


def in_tiles(module: Any, mask: torch.Tensor | None = None):
    return lambda *tensors: tiled_attention.tiled_attention(module, *tensors, attention_mask=mask, scaling=D_K**-0.5)[0]


def plainly(hidden: torch.Tensor | None = None):
    added = None if hidden is None else torch.zeros(hidden.shape).masked_fill(hidden, torch.finfo(torch.float32).min)
    return lambda *tensors: plain_product(FULL, *tensors, attention_mask=added, scaling=D_K**-0.5)[0]  # pyright: ignore[reportArgumentType] -- stands for a module


@pytest.mark.parametrize(
    ("module", "keys", "mask", "hidden"),
    [
        (FULL, LENGTH, None, None),
        (CAUSAL, LENGTH, None, LATER),
        (FULL, 29, None, None),
        (FULL, 29, padding(29), ~padding(29)),
        (CAUSAL, LENGTH, padding() & ~LATER, ~padding() | LATER),
    ],
    ids=["self", "causal", "cross", "cross, padded", "causal, padded"],
)
def test_tiles_equal_the_plain_product(module, keys, mask, hidden, tiles):
    tensors = inputs(keys)
    found, expected = (outputs_and_gradients(f, tensors) for f in (in_tiles(module, mask), plainly(hidden)))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("module", [FULL, CAUSAL])
def test_tiles_equal_the_kernel_of_torch(module, tiles):
    tensors = inputs(d_v=D_K)
    kernel = lambda *tensors: torch_attention(*tensors, is_causal=module.is_causal).transpose(1, 2)  # noqa: E731 -- as its rival
    found, expected = (outputs_and_gradients(function, tensors) for function in (in_tiles(module), kernel))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("module", [FULL, CAUSAL])
def test_bfloat16_is_as_exact_as_the_plain_product_in_it(module, tiles):
    tensors = inputs(dtype=torch.bfloat16)
    exact = outputs_and_gradients(plainly(LATER if module.is_causal else None), [tensor.float() for tensor in tensors])
    mask = torch.zeros(LENGTH, LENGTH, dtype=torch.bfloat16)
    mask = mask.masked_fill_(LATER, torch.finfo(torch.bfloat16).min) if module.is_causal else None
    rounded = lambda *tensors: plain_product(FULL, *tensors, attention_mask=mask, scaling=D_K**-0.5)[0]  # noqa: E731 # pyright: ignore[reportArgumentType] -- as its rival
    for function in (in_tiles(module), rounded):
        for a, b in zip(outputs_and_gradients(function, tensors), exact, strict=True):
            assert (a - b).norm() < 0.02 * b.norm()  # a handful of roundings to 2^-9


def test_a_query_that_sees_no_key_is_finite(tiles):
    tensors = inputs()
    output, *gradients = outputs_and_gradients(
        in_tiles(FULL, torch.zeros(BATCH, 1, LENGTH, LENGTH, dtype=torch.bool)), tensors
    )
    mean = tensors[2].mean(dim=2, keepdim=True).transpose(1, 2)
    torch.testing.assert_close(output, mean.expand_as(output))
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize(
    ("expected", "changes"),
    [
        (True, {}),
        (True, {"is_causal": True}),
        (True, {"is_causal": True, "queries": 1, "mask": torch.ones(1, 1, 1, 4, dtype=torch.bool)}),
        (False, {"is_causal": True, "queries": 1}),
        (False, {"mask": torch.zeros(1, 1, 4, 4)}),
        (False, {"dtype": torch.float32}),
        (False, {"dtype": torch.float16}),
        (False, {"requires_grad": False}),
        (False, {"dropout": 0.1}),
        (False, {"device": "meta"}),
    ],
    ids=str,
)
def test_tiles_serve_only_where_they_are_faster(expected, changes, monkeypatch):
    monkeypatch.setattr(tiled_attention, "IS_FASTER", True)
    case = {"dtype": torch.bfloat16, "device": "cpu", "queries": 4, "requires_grad": True} | changes
    options = {"dtype": case["dtype"], "device": case["device"], "requires_grad": case["requires_grad"]}
    query, key = (torch.zeros(1, 1, length, 2, **options) for length in (case["queries"], 4))
    arguments = case.get("mask"), case.get("dropout", 0.0), case.get("is_causal", False)
    assert is_faster_in_tiles(query, key, *arguments) is expected


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
def test_training_in_bfloat16_takes_tiles_under_sdpa_and_has_the_gradients_of_eager(backend, monkeypatch):
    calls = []
    counted = lambda *args, **kwargs: calls.append(1) or tiled_attention.tiled_attention(*args, **kwargs)  # noqa: E731 -- counts
    monkeypatch.setattr(tiled_attention, "IS_FASTER", True)
    monkeypatch.setattr(attention, "tiled_attention", counted)
    model, rival = (FAMILIES[0].model(dropout=0.0).train() for _ in range(2))
    rival.load_state_dict(model.state_dict())
    model.set_attn_implementation(backend)
    rival.set_attn_implementation("eager")
    ids = torch.randint(3, 11, (2, 9), generator=torch.Generator().manual_seed(0))
    for trained in (model, rival):
        with torch.autocast("cpu", torch.bfloat16):
            trained(
                input_ids=ids, attention_mask=(torch.arange(9) < 6).repeat(2, 1), labels=ids.flip(1)
            ).loss.backward()
    attentions = model.config.num_layers + 2 * model.config.num_decoder_layers
    assert len(calls) == (attentions if backend == "sdpa" else 0)
    found, expected = (torch.cat([p.grad.flatten() for p in trained.parameters()]) for trained in (model, rival))
    assert (found - expected).norm() < 0.05 * expected.norm()  # bfloat16 has 8 bits
