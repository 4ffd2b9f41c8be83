# SPDX-License-Identifier: Apache-2.0
"""Weights laid out for decoding, against torch's own linear map."""

import copy
import pickle

import pytest
import torch
from torch import nn

from vanilla_transformer import VanillaTransformerConfig
from vanilla_transformer.attention import MultiHeadAttention
from vanilla_transformer.packed_linear import (
    ONEDNN_MIN_SIZE,
    PRECISIONS,
    PackedLinear,
    fused_projections,
    quantized_linears,
)

SIZES = [(6, 5), (7, 4), (512, 512)]  # the last is large enough for oneDNN
assert ONEDNN_MIN_SIZE <= 512 * 512


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("outputs", "inputs"), SIZES)
def test_it_is_the_linear_map(outputs, inputs, bias, relu, dtype):
    linear = nn.Linear(inputs, outputs, bias=bias, dtype=dtype)
    packed = PackedLinear(linear.weight, linear.bias, relu=relu)
    for rows in (1, 4, 33):
        states = torch.randn(rows, inputs, dtype=dtype)
        expected = linear(states).relu() if relu else linear(states)
        torch.testing.assert_close(packed(states), expected)
        if rows == 1:
            torch.testing.assert_close(packed.gemv(states), expected)
            torch.testing.assert_close(packed.gemv(states[None]), expected[None])


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_gemv_is_the_same_for_any_number_of_threads(threads, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    linear = nn.Linear(8, 10)  # not a multiple of 3
    states = torch.randn(1, 8)
    torch.testing.assert_close(PackedLinear(linear.weight, linear.bias).gemv(states), linear(states))


@pytest.mark.parametrize(("outputs", "inputs"), SIZES)
def test_bfloat16_is_torchs(outputs, inputs):
    linear = nn.Linear(inputs, outputs, dtype=torch.bfloat16)
    packed = PackedLinear(linear.weight, linear.bias, "bfloat16")
    for rows in (1, 4):
        states = torch.randn(rows, inputs, dtype=torch.bfloat16)
        torch.testing.assert_close(packed(states), linear(states), atol=0.05, rtol=0.02)  # 8 bits of precision
        torch.testing.assert_close(packed.gemv(states[:1]), linear(states[:1]), atol=0.05, rtol=0.02)


@pytest.mark.parametrize("relu", [False, True])
def test_int8_error_is_within_its_rounding(relu):
    linear = nn.Linear(64, 32)
    packed = PackedLinear(linear.weight, linear.bias, "int8", relu=relu)
    states = torch.randn(5, 64)
    states[1] *= 100  # one large row costs the others nothing
    # Half a level of the weights (127 of them for the largest) and of a row of states (127, one bit being left out).
    weight_error = linear.weight.abs().amax(dim=1) / 127 / 2  # (outputs)
    state_error = (states.amax(dim=1) - states.amin(dim=1))[:, None] / 127 / 2  # (rows, 1)
    bound = states.abs().sum(dim=1)[:, None] * weight_error + linear.weight.abs().sum(dim=1) * state_error
    expected = linear(states).relu() if relu else linear(states)
    assert ((packed(states) - expected).abs() <= 1.1 * bound).all()


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("outputs", "inputs"), [*SIZES, (37, 51), (700, 64)])
def test_int8_is_bitwise_batch_invariant(outputs, inputs, bias, relu):
    linear = nn.Linear(inputs, outputs, bias=bias)
    packed = PackedLinear(linear.weight, linear.bias, "int8", relu=relu)
    states = torch.randn(70, inputs) * 10 ** torch.linspace(-6, 6, 70)[:, None]
    states[3], states[4], states[5] = 0.0, 2.5, states[5].relu()  # rows that quantisation treats on its own
    together = packed(states)
    assert torch.equal(torch.cat([packed(row[None]) for row in states]), together)
    assert torch.equal(torch.cat([packed(part) for part in states.split(7)]), together)
    order = torch.randperm(70)
    assert torch.equal(packed(states[order]), together[order])
    assert torch.equal(packed(states.view(7, 10, inputs)).flatten(0, 1), together)


def test_int8_of_equal_states_is_the_sum_of_the_rounded_weights():
    linear = nn.Linear(8, 3, bias=False)
    scale = linear.weight.abs().amax(dim=1, keepdim=True) / 127
    expected = 2.5 * ((linear.weight / scale).round() * scale).sum(dim=1)
    torch.testing.assert_close(
        PackedLinear(linear.weight, None, "int8")(torch.full((2, 8), 2.5)), expected.expand(2, 3)
    )


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda packed: pickle.loads(pickle.dumps(packed))])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("outputs", "inputs"), SIZES)
def test_a_copy_computes_the_same(outputs, inputs, precision, duplicate):
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    linear, states = nn.Linear(inputs, outputs, dtype=dtype), torch.randn(3, inputs, dtype=dtype)
    packed = PackedLinear(linear.weight, linear.bias, precision)
    packed(states), packed.gemv(states[:1])  # after this it keeps further layouts
    copied = duplicate(packed)
    assert torch.equal(copied(states), packed(states))
    assert torch.equal(copied.gemv(states[:1]), packed.gemv(states[:1]))


def test_int8_of_a_matrix_of_zeros_is_zero():
    assert (PackedLinear(torch.zeros(4, 3), None, "int8")(torch.randn(2, 3)) == 0).all()


def test_int8_elsewhere_than_on_a_cpu_is_refused():
    with pytest.raises(ValueError, match="the model is on meta"):
        PackedLinear(torch.zeros(4, 3, device="meta"), None, "int8")


def test_every_linear_map_of_a_module_is_quantized():
    module = nn.Sequential(nn.Linear(8, 8), nn.Sequential(nn.ReLU(), nn.Linear(8, 4)))
    states = torch.randn(3, 8)
    expected = module(states)
    quantized = quantized_linears(module)
    assert not any(type(item) is nn.Linear for item in quantized.modules())
    torch.testing.assert_close(quantized(states), expected, atol=0.05, rtol=0.05)


def test_quantizing_leaves_the_module_as_it_is_and_shares_its_other_parameters():
    module = nn.Sequential(nn.Embedding(5, 8), nn.Linear(8, 4))
    quantized = quantized_linears(module)
    assert type(module[1]) is nn.Linear
    assert quantized[0].weight is module[0].weight


@pytest.mark.parametrize("bias", [False, True])
def test_fused_projections_are_the_projections_side_by_side_with_scaled_queries(bias):
    config = VanillaTransformerConfig(vocab_size=9, d_model=12, num_heads=3, d_k=4, d_v=5, attention_bias=bias)
    attention, states = MultiHeadAttention(config), torch.randn(7, 12)
    fused = nn.functional.linear(states, *fused_projections(attention, ["q_proj", "k_proj", "v_proj"]))
    expected = [attention.q_proj(states) * 4**-0.5, attention.k_proj(states), attention.v_proj(states)]
    torch.testing.assert_close(fused, torch.cat(expected, dim=1))
