# SPDX-License-Identifier: Apache-2.0
"""Section 5.4: the chunked loss against torch's cross-entropy, in value and gradient."""

import pytest
import torch
from torch.nn import functional

from vanilla_transformer import loss as loss_module
from vanilla_transformer.loss import chunk_tokens, cross_entropy_of_logits, smoothed_cross_entropy


@pytest.fixture
def case():
    torch.manual_seed(0)
    hidden = torch.randn(3, 7, 8, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(11, 8, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(0, 11, (3, 7))
    labels[1, 4:] = -100
    return hidden, weight, labels


def reference(hidden, weight, labels, smoothing, bias=None):
    logits = functional.linear(hidden, weight, bias).view(-1, weight.shape[0])
    return functional.cross_entropy(logits, labels.view(-1), label_smoothing=smoothing)


@pytest.mark.parametrize("chunk_elements", [11, 40, 2**22])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("with_bias", [False, True])
def test_loss_and_gradients_equal_torchs(case, with_bias, smoothing, chunk_elements, monkeypatch):
    monkeypatch.setattr(loss_module, "CHUNK_ELEMENTS_ON_A_CPU", chunk_elements)
    monkeypatch.setattr(loss_module, "SOFTMAX_ELEMENTS_ON_A_CPU", chunk_elements // 2)
    monkeypatch.setattr(loss_module, "VOCAB_ROWS", 4)
    hidden, weight, labels = case
    bias = torch.randn(11, dtype=torch.float64, requires_grad=True) if with_bias else None
    loss, _ = smoothed_cross_entropy(hidden, weight, labels, smoothing, bias=bias)
    expected = reference(hidden, weight, labels, smoothing, bias=bias)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-12)
    inputs = [hidden, weight] if bias is None else [hidden, weight, bias]
    gradients = torch.autograd.grad(3 * loss, inputs)
    for gradient, other in zip(gradients, torch.autograd.grad(3 * expected, inputs), strict=True):
        assert torch.allclose(gradient, other, atol=1e-12)


def test_softmax_by_rows_has_the_gradients_of_all_rows_at_once_to_the_bit(monkeypatch):
    torch.manual_seed(0)
    hidden, weight = (torch.randn(*shape, dtype=torch.bfloat16, requires_grad=True) for shape in ((1, 7, 8), (11, 8)))
    found = []
    for elements in (2**20, 22):  # seven rows, then two at a time
        monkeypatch.setattr(loss_module, "SOFTMAX_ELEMENTS_ON_A_CPU", elements)
        loss, _ = smoothed_cross_entropy(hidden, weight, torch.arange(7)[None], 0.1)
        found.append(torch.autograd.grad(loss, [hidden, weight]))
    for gradient, other in zip(*found, strict=True):
        assert torch.equal(gradient, other)


def test_equals_torchs_own_chunked_loss(case):
    """Without smoothing, the only case that torch's chunked path takes."""
    hidden, weight, labels = case
    options = torch.nn.LinearCrossEntropyOptions()
    expected = functional.linear_cross_entropy(hidden.view(-1, 8), weight, labels.view(-1), options=options)
    assert smoothed_cross_entropy(hidden, weight, labels)[0].item() == pytest.approx(expected.item(), abs=1e-10)


def test_likelihood_is_unsmoothed_and_without_gradient(case):
    hidden, weight, labels = case
    _, nll = smoothed_cross_entropy(hidden, weight, labels, 0.3)
    assert nll.item() == pytest.approx(reference(hidden, weight, labels, 0.0).item(), abs=1e-12)
    assert not nll.requires_grad


def test_smoothing_spreads_epsilon_over_the_whole_vocabulary():
    """Cross-entropy against (1 - eps) one_hot + eps / V, written out."""
    torch.manual_seed(1)
    hidden, weight, labels = torch.randn(1, 2, 4), torch.randn(5, 4), torch.tensor([[3, 0]])
    log_probabilities = (hidden @ weight.T).log_softmax(-1)
    target = 0.8 * functional.one_hot(labels, 5) + 0.2 / 5
    expected = -(target * log_probabilities).sum(-1).mean()
    assert smoothed_cross_entropy(hidden, weight, labels, 0.2)[0].item() == pytest.approx(expected.item(), abs=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_from_logits_equals_the_chunked_loss(case, smoothing):
    hidden, weight, labels = case
    found = cross_entropy_of_logits(functional.linear(hidden, weight), labels, smoothing, 5)
    expected = smoothed_cross_entropy(hidden, weight, labels, smoothing, 5)
    assert torch.allclose(torch.stack(found), torch.stack(expected), atol=1e-12)
    assert not found[1].requires_grad


def test_num_items_in_batch_may_be_fractional(case):
    """Trainer divides the count by the processes of tensor parallelism."""
    hidden, weight, labels = case
    whole, half = (smoothed_cross_entropy(hidden, weight, labels, 0.1, torch.tensor(n))[0] for n in (1.0, 0.5))
    assert half.item() == pytest.approx(2 * whole.item())


def test_accumulated_losses_add_up_to_the_whole_batchs(case):
    hidden, weight, labels = case
    tokens = (labels != -100).sum()
    whole, _ = smoothed_cross_entropy(hidden, weight, labels, 0.1)
    parts = [smoothed_cross_entropy(hidden[i : i + 1], weight, labels[i : i + 1], 0.1, tokens)[0] for i in range(3)]
    assert sum(parts).item() == pytest.approx(whole.item(), abs=1e-12)


def test_saved_tensors_are_far_smaller_than_the_logits():
    """autograd saves the two gradients, not the 2,048 x 1,024 logits."""
    hidden = torch.randn(1, 2048, 4, requires_grad=True)
    weight = torch.randn(1024, 4, requires_grad=True)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        smoothed_cross_entropy(hidden, weight, torch.zeros(1, 2048, dtype=torch.long), 0.1)
    assert sum(saved) <= 2 * (hidden.numel() + weight.numel())


def test_bfloat16_autocast_gives_gradients_near_float32s(case):
    hidden, weight, labels = (case[0].detach().float(), case[1].detach().float(), case[2])
    hidden.requires_grad_(), weight.requires_grad_()
    expected = torch.autograd.grad(smoothed_cross_entropy(hidden, weight, labels, 0.1)[0], [hidden, weight])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, _ = smoothed_cross_entropy(hidden, weight, labels, 0.1)
    assert loss.dtype == torch.float32
    for gradient, other in zip(torch.autograd.grad(loss, [hidden, weight]), expected, strict=True):
        assert gradient.dtype == torch.float32
        assert torch.allclose(gradient, other, atol=0.02 * other.abs().max().item())


@pytest.mark.parametrize(("tokens", "vocab_size"), [(1, 5), (4096, 37_000), (25_000, 37_000), (7, 2**26)])
def test_chunks_are_even_and_within_the_limit(tokens, vocab_size):
    chunk = chunk_tokens(tokens, vocab_size, torch.device("cpu"))
    chunks = -(-tokens // chunk)
    assert chunk * vocab_size <= max(loss_module.CHUNK_ELEMENTS_ON_A_CPU + chunks * vocab_size, vocab_size)
    assert chunk * chunks - tokens < chunks


def test_no_tokens_have_no_loss_and_zero_gradients():
    hidden, weight = torch.randn(0, 3, 8, requires_grad=True), torch.randn(11, 8, requires_grad=True)
    loss, nll = smoothed_cross_entropy(hidden, weight, torch.zeros(0, 3, dtype=torch.long), 0.1)
    (loss + 0 * weight.sum()).backward()
    assert loss.item() == nll.item() == 0
    assert not weight.grad.any()
