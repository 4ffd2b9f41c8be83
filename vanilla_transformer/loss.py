# SPDX-License-Identifier: Apache-2.0
"""Section 5.4 of the paper: cross-entropy with label smoothing, from logits or in chunks of tokens without them."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from .transformers_differences import Seq2SeqLMOutput

IGNORE_INDEX = -100  # the label of positions without a target, as everywhere in transformers
# Logits of a chunk. Each chunk launches a dozen kernels and adds to the whole gradient of the weight: fewer are faster.
CHUNK_ELEMENTS, CHUNK_ELEMENTS_ON_A_CPU = 2**28, 2**25  # 1 GiB and 128 MiB in float32
SOFTMAX_ELEMENTS_ON_A_CPU = 2**21  # of the scores in float32 beside logits of bfloat16: they stay in its cache
VOCAB_ROWS = 2**13  # rows of the weight's gradient that are computed at a time


@dataclass
class Seq2SeqLMLossOutput(Seq2SeqLMOutput):
    """transformers' `Seq2SeqLMOutput` with the unsmoothed loss.

    Args:
        negative_log_likelihood: scalar without gradient, in nats, normalised as `loss` is. The perplexity is exp() of
            its mean over all target tokens.
    """

    negative_log_likelihood: torch.Tensor | None = None


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Projection, softmax and smoothed cross-entropy, summed over the tokens, a chunk of tokens at a time.

    The float32 logits `(tokens, vocab_size)` of the paper's batch (25,000 x 37,000) would take 3.7 GB, and their
    gradient as much. Here `forward` computes the gradients of both inputs chunk by chunk, and `backward` only scales
    them. torch 2.13's `linear_cross_entropy` chunks too, but not with label smoothing, and torch 2.11 has none.
    """

    @staticmethod
    def forward(ctx, hidden_states, weight, bias, labels, label_smoothing):
        vocab_size, device = weight.shape[0], hidden_states.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden_states.dtype
        acc_dtype = torch.promote_types(dtype, torch.float32)  # for sums and softmax
        hidden, matrix = hidden_states.to(dtype), weight.to(dtype)
        addend = None if bias is None else bias.to(dtype)  # (vocab_size)
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.empty_like(hidden_states) if needs_hidden else None
        grad_weight = torch.zeros_like(matrix, dtype=acc_dtype) if needs_weight else None
        grad_bias = hidden.new_zeros(vocab_size, dtype=acc_dtype) if needs_bias else None
        loss = nll = torch.zeros((), dtype=acc_dtype, device=hidden.device)
        mean_weight = matrix.mean(dim=0, dtype=acc_dtype)  # (d_model)
        tokens = labels.shape[0]
        chunk = chunk_tokens(tokens, vocab_size, hidden.device)
        # Buffers of all chunks: on a CPU fresh memory costs as much as the softmax.
        logits = hidden.new_empty(chunk, vocab_size)
        is_eager_cpu = device == "cpu" and not torch.compiler.is_compiling()  # a graph would unroll the loop
        rows = min(chunk, max(1, SOFTMAX_ELEMENTS_ON_A_CPU // vocab_size)) if is_eager_cpu else chunk
        buffer = logits if dtype == acc_dtype else logits.new_empty(rows, vocab_size, dtype=acc_dtype)
        for start in range(0, tokens, chunk):
            inputs, targets = hidden[start : start + chunk], labels[start : start + chunk, None]
            is_target = targets != IGNORE_INDEX  # (chunk, 1)
            # Not a clamp, which would turn other labels out of range into token 0: `gather` has to refuse them.
            targets = targets.masked_fill(~is_target, 0)  # (chunk, 1)
            products = logits[: len(inputs)]  # (chunk, vocab_size)
            if addend is None:
                torch.mm(inputs, matrix.T, out=products)
            else:
                torch.addmm(addend, inputs, matrix.T, out=products)
            mean_product = (inputs.to(acc_dtype) @ mean_weight)[:, None]  # (chunk, 1)
            if addend is not None:
                mean_product += addend.mean(dtype=acc_dtype)
            # Some rows at a time, because scores have twice the bytes of bfloat16 products.
            parts = (tensor.split(rows) for tensor in (products, targets, is_target, mean_product))
            for part, target, counts, mean_score in zip(*parts, strict=True):
                scores = part if dtype == acc_dtype else buffer[: len(part)].copy_(part)  # (rows, vocab_size)
                highest = scores.amax(dim=-1, keepdim=True)  # (rows, 1)
                scores = scores.sub_(highest)
                target_score = scores.gather(-1, target)  # (rows, 1)
                exponentials = scores.exp_()
                total = exponentials.sum(dim=-1, keepdim=True)  # (rows, 1)
                target_nll, uniform_nll = total.log() - target_score, total.log() - (mean_score - highest)
                smoothed = (1 - label_smoothing) * target_nll + label_smoothing * uniform_nll
                loss = loss + (smoothed * counts).sum()
                nll = nll + (target_nll * counts).sum()
                # d loss / d scores = softmax - (1 - epsilon) one_hot - epsilon / vocab_size. The last term is the same
                # for the whole vocabulary, and is subtracted below without another pass over the chunk.
                if any(ctx.needs_input_grad):
                    grad_scores = exponentials.mul_(counts / total)
                    grad_scores.scatter_add_(-1, target, counts * (label_smoothing - torch.ones_like(total)))
                    part.copy_(grad_scores)
            if grad_hidden is not None:
                grad_hidden[start : start + chunk] = products @ matrix  # (chunk, d_model)
            if grad_weight is not None:
                # Not all rows at once: their product would be as large as the gradient.
                for part, columns in zip(grad_weight.split(VOCAB_ROWS), products.split(VOCAB_ROWS, dim=1), strict=True):
                    part += columns.T @ inputs  # (VOCAB_ROWS, d_model)
            if grad_bias is not None:
                grad_bias += products.sum(dim=0, dtype=acc_dtype)
        if label_smoothing:
            all_targets = (labels != IGNORE_INDEX)[:, None]  # (tokens, 1)
            if grad_hidden is not None:
                grad_hidden -= label_smoothing * all_targets * mean_weight
            if grad_weight is not None:
                grad_weight -= label_smoothing / vocab_size * (hidden * all_targets).to(acc_dtype).sum(dim=0)
            if grad_bias is not None:
                grad_bias -= label_smoothing / vocab_size * all_targets.sum()
        ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
        ctx.weight_dtype = weight.dtype
        ctx.mark_non_differentiable(nll)
        return loss, nll

    @staticmethod
    @once_differentiable
    def backward(ctx, *grad_outputs):
        grad_hidden, grad_weight, grad_bias = ctx.saved_tensors
        grad_loss = grad_outputs[0]
        if grad_hidden is not None:
            grad_hidden = grad_hidden * grad_loss.to(grad_hidden.dtype)
        if grad_weight is not None:
            grad_weight = (grad_weight * grad_loss).to(ctx.weight_dtype)
        if grad_bias is not None:
            grad_bias = (grad_bias * grad_loss).to(ctx.weight_dtype)
        return grad_hidden, grad_weight, grad_bias, None, None


def chunk_tokens(tokens: int, vocab_size: int, device: torch.device) -> int:
    """The tokens of a chunk: chunks of equal size, whose logits do not exceed the limit for the device."""
    limit = CHUNK_ELEMENTS_ON_A_CPU if device.type == "cpu" else CHUNK_ELEMENTS
    chunks = math.ceil(tokens * vocab_size / limit)
    return max(1, math.ceil(tokens / max(1, chunks)))


def smoothed_cross_entropy(
    hidden_states: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    label_smoothing: float = 0.0,
    num_items_in_batch: torch.Tensor | int | None = None,
    bias: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy against (1 - epsilon) one_hot + epsilon / vocab_size, mean over target tokens (section 5.4).

    This is torch's definition of label smoothing, which spreads epsilon over the whole vocabulary. tensor2tensor and
    fairseq spread it over the other vocab_size - 1 tokens.

    Args:
        hidden_states: the decoder's output `(batch, target_length, d_model)`.
        weight: the projection before the softmax `(vocab_size, d_model)`.
        labels: targets `(batch, target_length)`; only -100 is ignored.
        label_smoothing: epsilon.
        num_items_in_batch: target tokens of the whole update, by which the sum is divided when gradients of several
            batches are accumulated; `None`: this batch's own target tokens.
        bias: the projection's, `(vocab_size)`.

    Returns:
        The smoothed loss, and the unsmoothed negative log-likelihood without gradient; scalars, in nats. Both are 0,
        with zero gradients, if every label is ignored.

    Raises:
        RuntimeError: another label below 0, or one beyond the vocabulary (on a GPU an assertion of the device).
    """
    if not torch.is_grad_enabled():  # a Function does not learn this from autograd, and would compute both gradients
        hidden_states, weight = hidden_states.detach(), weight.detach()
        bias = None if bias is None else bias.detach()
    loss, nll = _ChunkedCrossEntropy.apply(
        hidden_states.reshape(-1, hidden_states.shape[-1]),  # (batch * target_length, d_model)
        weight,
        bias,
        labels.reshape(-1).to(hidden_states.device),  # (batch * target_length)
        label_smoothing,
    )  # pyright: ignore[reportGeneralTypeIssues] -- apply is untyped in torch
    count = _num_target_tokens(labels, num_items_in_batch, loss.device)
    return loss / count, nll / count


def cross_entropy_of_logits(
    logits: torch.Tensor,
    labels: torch.Tensor,
    label_smoothing: float = 0.0,
    num_items_in_batch: torch.Tensor | int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`smoothed_cross_entropy` from logits `(batch, target_length, vocab_size)`, with one softmax for both results.

    Raises:
        IndexError: a label below 0 other than -100, or one beyond the vocabulary.
    """
    acc_dtype = torch.promote_types(logits.dtype, torch.float32)  # for sums and softmax
    scores = logits.reshape(-1, logits.shape[-1]).to(acc_dtype)  # (batch * target_length, vocab_size)
    targets = labels.reshape(-1).to(scores.device)  # (batch * target_length)
    log_probabilities = scores.log_softmax(dim=-1)
    loss = target_nll = nn.functional.nll_loss(log_probabilities, targets, ignore_index=IGNORE_INDEX, reduction="sum")
    if label_smoothing:
        uniform_nll = -(log_probabilities.mean(dim=-1) * (targets != IGNORE_INDEX)).sum()
        loss = (1 - label_smoothing) * target_nll + label_smoothing * uniform_nll
    count = _num_target_tokens(labels, num_items_in_batch, loss.device)
    return loss / count, target_nll.detach() / count


def _num_target_tokens(labels: torch.Tensor, num_items_in_batch: Any, device: torch.device) -> Any:
    """The denominator of a mean over target tokens; 1 instead of 0, so that the mean is 0 and not NaN."""
    if num_items_in_batch is None:
        num_items_in_batch = (labels != IGNORE_INDEX).sum()
    if isinstance(num_items_in_batch, torch.Tensor):
        count = num_items_in_batch.to(device)
        return count + (count == 0)
    return num_items_in_batch or 1
