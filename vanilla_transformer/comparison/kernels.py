# SPDX-License-Identifier: Apache-2.0
"""Kernels of a model's update: a layer reads a sequence in one fused kernel, or in calls for each token."""

from collections.abc import Sequence
from typing import Any

import torch
from accelerate.utils import patch_environment
from torch.profiler import profile
from transformers import PreTrainedModel

from vanilla_transformer.comparison.tasks import FIRST_SYMBOL

LENGTHS = 8, 16  # tokens: enough to tell calls for each token from calls for each layer
Batch = dict[str, torch.Tensor]


def describe_kernels(model: PreTrainedModel, batches: Sequence[Batch], is_bf16: bool) -> dict[str, Any]:
    """Profile forward and backward passes.

    Args:
        batches: two of as many sentences, two or more; the second has longer ones.

    Returns:
        `operator`, in which torch spends the largest `share` (0 to 1) of the time in its operators, and
        `calls_per_token`: how many calls of operators, forwards and backwards, one more token in every sentence
        takes. `calls_per_token_padded` is the same where one source is half as long as the others: torch then packs
        the sources of an RNN, and fused kernels on CPUs cannot read packed sequences.
    """
    lengths = [batch["labels"].shape[1] for batch in batches]
    growth, times = {}, {}
    _compute(model, batches[-1], is_bf16)  # the first time tables are built, which the profiles should not count
    for key, is_padded in (("calls_per_token_padded", True), ("calls_per_token", False)):
        counts = []
        for batch in batches:
            mask = torch.ones_like(batch["input_ids"])
            mask[0, mask.shape[1] // 2 :] = 0
            calls, times = _profile(model, batch | {"attention_mask": mask} if is_padded else batch, is_bf16)
            counts.append(calls)
        growth[key] = (counts[1] - counts[0]) / (lengths[1] - lengths[0])
    operator = max(times, key=lambda name: times[name])  # of the last profile: the longer sentences, without padding
    return {"operator": operator, "share": times[operator] / sum(times.values())} | growth


def random_batch(model: PreTrainedModel, batch_size: int, length: int) -> Batch:
    """Source and target of random tokens, `(batch_size, length)`, on the model's device."""
    ids = torch.randint(FIRST_SYMBOL, model.config.vocab_size, (2, batch_size, length)).to(model.device)
    return {"input_ids": ids[0], "labels": ids[1]}


def _compute(model: PreTrainedModel, batch: Batch, is_bf16: bool) -> None:
    """A forward and a backward pass, which leave no gradients."""
    with torch.autocast(model.device.type, torch.bfloat16, enabled=is_bf16):
        loss = model(**batch, skip_logits=True).loss
    loss.backward()
    model.zero_grad()


def _profile(model: PreTrainedModel, batch: Batch, is_bf16: bool) -> tuple[int, dict[str, float]]:
    """The calls of torch's operators, and the time in each itself (operator → microseconds on the model's device)."""
    # Otherwise the profiler reports its own stages on stderr.
    with patch_environment(kineto_log_level="99"), profile() as profiled:
        _compute(model, batch, is_bf16)
    operators = [event for event in profiled.key_averages() if event.key.startswith("aten::")]
    kind = "cpu" if model.device.type == "cpu" else "device"
    times = {event.key: getattr(event, f"self_{kind}_time_total") for event in operators}
    return sum(event.count for event in operators), times
