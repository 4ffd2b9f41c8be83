# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from torch import nn

from vanilla_transformer import linear as linear_module
from vanilla_transformer.linear import MAX_ROWS, Linear, joint_linear


@pytest.fixture(autouse=True)
def blocks_of_two(monkeypatch):
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    monkeypatch.setattr(linear_module, "MIN_ELEMENTS", 1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def products(monkeypatch) -> list[str]:
    """Names of the products in blocks that are computed."""
    computed = []
    for name in ("bmm", "baddbmm"):
        original = getattr(torch, name)

        def counted(*args, name=name, original=original):
            computed.append(name)
            return original(*args)

        monkeypatch.setattr(torch, name, counted)
    return computed


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(1, 1), (4, 1), (2, 3, 5), (MAX_ROWS,)])
@torch.no_grad()
def test_blocks_equal_one_product(shape, bias, products):
    torch.manual_seed(0)
    part = Linear(24, 10, bias=bias)
    inputs = torch.randn(*shape, 24)
    expected = inputs.double() @ part.weight.double().T + (part.bias.double() if bias else 0)
    torch.testing.assert_close(part(inputs), expected.float())
    assert products == ["baddbmm" if bias else "bmm"]


@torch.no_grad()
def test_indivisible_outputs_and_many_rows_use_one_product(products):
    torch.manual_seed(0)
    odd, inputs = Linear(24, 7), torch.randn(MAX_ROWS + 1, 24)
    assert torch.equal(odd(inputs[:3]), nn.functional.linear(inputs[:3], odd.weight, odd.bias))
    even = Linear(24, 10)
    assert torch.equal(even(inputs), nn.functional.linear(inputs, even.weight, even.bias))
    assert not products


def test_gradients_are_those_of_one_product(products):
    part, inputs = Linear(24, 10), torch.randn(3, 24)
    part(inputs).sum().backward()
    torch.testing.assert_close(part.weight.grad, inputs.sum(0).expand(10, -1))
    assert not products


def test_joint_linear_equals_each_layer_by_itself():
    torch.manual_seed(0)
    layers, inputs = [Linear(8, width) for width in (6, 6, 4)], torch.randn(2, 3, 8, requires_grad=True)
    parameters = [inputs, *(parameter for layer in layers for parameter in layer.parameters())]
    weights = [torch.randn(2, 3, width) for width in (6, 6, 4)]
    found, expected = joint_linear(inputs, layers), [layer(inputs) for layer in layers]
    gradients, others = (
        torch.autograd.grad(sum((w * o).sum() for w, o in zip(weights, outputs, strict=True)), parameters)
        for outputs in (found, expected)
    )
    for one, other in zip([*found, *gradients], [*expected, *others], strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("change", ["hook", "forward", "subclass"])
def test_joint_linear_calls_layers_that_are_not_as_they_were(change):
    """Such as those with an adapter, or those that Accelerate moves between devices."""
    layers, inputs, called = [Linear(8, 4), Linear(8, 4)], torch.randn(3, 8), []
    if change == "hook":
        layers[1].register_forward_hook(lambda *args: called.append(change))
    elif change == "forward":
        forward = layers[1].forward
        layers[1].forward = lambda input: called.append(change) or forward(input)
    else:
        layers[1].__class__ = type(
            "Adapted", (Linear,), {"forward": lambda self, input: called.append(change) or input}
        )
    joint_linear(inputs, layers)
    assert called == [change]
