# SPDX-License-Identifier: Apache-2.0
"""Section 5.4: the fast dropout has torch's distribution."""

import pytest
import torch

from vanilla_transformer.dropout import Dropout


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.5])
def test_share_of_dropped_elements_is_the_rate(rate):
    torch.manual_seed(0)
    dropped = (Dropout(rate)(torch.ones(1000, 1000)) == 0).double().mean().item()
    assert dropped == pytest.approx(rate, abs=5 * (rate * (1 - rate)) ** 0.5 / 1000)  # five standard deviations


def test_kept_elements_are_scaled_as_in_torch():
    torch.manual_seed(0)
    kept = Dropout(0.25)(torch.ones(999))
    expected = torch.nn.functional.dropout(torch.ones(999), 0.25)
    assert set(kept.tolist()) == set(expected.tolist())


def test_neighbours_drop_independently():
    torch.manual_seed(0)
    kept = (Dropout(0.3)(torch.ones(400_000)) != 0).double() - 0.7
    for distance in (1, 2, 3, 4, 5):
        covariance = (kept[:-distance] * kept[distance:]).mean().item()
        assert abs(covariance) < 5 * 0.21 / 400_000**0.5


def test_gradient_passes_where_the_element_was_kept():
    torch.manual_seed(0)
    x = torch.randn(50, 7, requires_grad=True)
    y = Dropout(0.4)(x)
    y.sum().backward()
    assert torch.allclose(x.grad, torch.where(y == 0, 0.0, y / x).detach())


def test_evaluation_mode_changes_nothing():
    x = torch.randn(5, 5)
    assert Dropout(0.9).eval()(x) is x


def test_one_seed_gives_one_mask():
    first, second = (torch.manual_seed(3) and Dropout(0.5)(torch.ones(100)) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("rate", [0.0, 0.4])
def test_adding_to_a_residual_is_dropout_and_a_sum(rate):
    residual, inputs = torch.randn(40, 7), torch.randn(40, 7, requires_grad=True)
    dropout = Dropout(rate)
    found, expected = (
        torch.manual_seed(3) and function()
        for function in (lambda: dropout.add(residual, inputs), lambda: residual + dropout(inputs))
    )
    torch.testing.assert_close(found, expected)
    gradients = [torch.autograd.grad(output.square().sum(), inputs)[0] for output in (found, expected)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("adds", [False, True])
def test_a_byte_of_each_element_is_kept_for_the_gradient(adds):
    inputs, dropout, saved = torch.randn(40, 7, requires_grad=True), Dropout(0.4), []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        dropout.add(torch.randn(40, 7), inputs) if adds else dropout(inputs)
    assert sum(tensor.nbytes for tensor in saved) == inputs.numel()


def test_gradients_have_the_types_of_their_inputs():
    residual, inputs = (torch.randn(6, 7, dtype=dtype, requires_grad=True) for dtype in (torch.float32, torch.bfloat16))
    Dropout(0.4).add(residual, inputs).sum().backward()
    assert residual.grad.dtype == torch.float32
    assert torch.equal(residual.grad, torch.ones(6, 7))
    assert inputs.grad.dtype == torch.bfloat16
