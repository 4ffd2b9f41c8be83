# SPDX-License-Identifier: Apache-2.0
"""The gradients of an update: accumulated in parts that fit in memory, and clipped."""

import re
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch.distributed.tensor import DTensor

from vanilla_transformer.data.tokenized_pairs import LINKS
from vanilla_transformer.distributed.deepspeed_zero import ZeroOptimizer
from vanilla_transformer.distributed.fsdp import is_sharded
from vanilla_transformer.distributed.processes import sum_over_processes
from vanilla_transformer.training.batch import Batch, to_device
from vanilla_transformer.training.configuration import TrainingConfig
from vanilla_transformer.training.guided_alignment import alignment_loss
from vanilla_transformer.training.train_state import TrainState

# Messages of allocators and libraries that Accelerate does not know: CUDA, cuBLAS, cuDNN, HIP, XPU, MPS, oneDNN, C++.
OUT_OF_MEMORY = re.compile(
    "out of (device |host )?memory|out_of_(device|host)_memory|alloc_failed|bad_alloc|can(no|')t allocate memory|"
    "not enough memory|invalid buffer size|could not create a memory object",
    re.IGNORECASE,
)


class Losses(NamedTuple):
    """The losses of one update, on the device.

    Args:
        loss, nll: this process's part of the smoothed loss and of the negative log-likelihood; their sums over
            the processes are the update's means per target token.
        tokens: target tokens of all processes.
    """

    loss: torch.Tensor
    nll: torch.Tensor
    tokens: torch.Tensor


def backward(state: TrainState, micro_batches: list[Batch], training: TrainingConfig) -> Losses:
    """Gradients of the mean loss over the target tokens of the whole update: all micro-batches, all processes.

    A micro-batch that does not fit in memory is halved along its pairs, repeatedly if necessary, and all gradients of
    the update are computed anew. They equal those of the whole up to rounding, but dropout draws other masks. From then
    on `progress.max_positions` bounds every part.

    Raises:
        ValueError: a single pair does not fit; or a part does not that several processes compute together.
    """
    accelerator = state.accelerator
    tokens = to_device(torch.tensor(sum(batch.target_tokens for batch in micro_batches)), accelerator.device)
    tokens = sum_over_processes(accelerator, tokens)
    parts = _parts_that_fit(state, micro_batches)
    while True:
        loss, nll, too_large = _accumulate(state, parts, tokens, training.guided_alignment or 0)
        if too_large is None:
            return Losses(loss, nll, tokens)
        halves = _halves(state, parts[too_large], training, is_last=too_large == len(parts) - 1)
        state.optimizer.zero_grad()  # the failed backward pass has left some gradients
        clear_device_cache(garbage_collection=True)
        state.progress.halved_batches += 1
        state.progress.max_positions = max(half.positions() for half in halves)
        parts[too_large : too_large + 1] = halves


def _parts_that_fit(state: TrainState, micro_batches: list[Batch]) -> list[Batch]:
    """The micro-batches, halved to at most `max_positions`.

    Of several processes, one that fails in the last part would leave the others waiting for its gradients. So if that
    part is larger than all before, it is computed without its last pair, alone, before that pair, together.
    """
    progress = state.progress
    parts = []
    for batch in micro_batches:
        pending = [batch]
        while pending:
            part = pending.pop(0)
            if progress.max_positions is None or part.positions() <= progress.max_positions or len(part["labels"]) == 1:
                parts.append(part)
            else:
                pending[:0] = part.halves()
    if _can_fail_alone(state) and parts[-1].positions() > progress.proven_positions:
        parts[-1:] = parts[-1].split(len(parts[-1]["labels"]) - 1)
    return parts


def _can_fail_alone(state: TrainState) -> bool:
    """Whether one of several processes may compute the parts before the last without the others."""
    several = state.accelerator.num_processes > 1
    return several and not isinstance(state.optimizer, ZeroOptimizer) and not is_sharded(state.model)


def _accumulate(
    state: TrainState, parts: list[Batch], tokens: torch.Tensor, weight: float
) -> tuple[torch.Tensor, torch.Tensor, int | None]:
    """Add every part's gradients; the third result is the index of a part that does not fit in memory, if any.

    Args:
        weight: factor of the loss of guided alignment.
    """
    accelerator = state.accelerator
    loss = nll = torch.zeros((), device=accelerator.device)
    host_inputs = state.bare_model().host_inputs
    for index, batch in enumerate(parts):
        try:
            with _gradient_sync(state, is_last=index == len(parts) - 1):
                moved = {name: to_device(batch[name], accelerator.device) for name in batch.keys() - host_inputs}
                inputs: dict[str, Any] = batch | moved
                links = inputs.pop(LINKS, None)
                if links is not None:
                    inputs["output_attentions"] = True
                output = state.model(**inputs, num_items_in_batch=tokens, skip_logits=True)
                total = output.loss
                if links is not None:
                    total = total + weight * alignment_loss(output.cross_attentions, links, tokens)
                # DistributedDataParallel, FSDP2 and ZeRO take the mean of the processes' gradients; we need their sum.
                accelerator.backward(total * accelerator.num_processes)
        except (RuntimeError, MemoryError) as error:
            if not should_reduce_batch_size(error) and not OUT_OF_MEMORY.search(str(error)):
                raise
            return loss, nll, index  # halve outside: the error holds the tensors of the failed pass
        loss = loss + output.loss.detach()
        nll = nll + output.negative_log_likelihood
    return loss, nll, None


def _gradient_sync(state: TrainState, is_last: bool) -> AbstractContextManager:
    """Reduce gradients over the processes with the last part only.

    Sharded gradients are reduced with every part: unsharded ones would take the memory that sharding saves.
    """
    if isinstance(state.optimizer, ZeroOptimizer):
        state.optimizer.begin_micro_batch(is_last)
        return nullcontext()
    if is_last or is_sharded(state.model):
        return nullcontext()
    return state.accelerator.no_sync(state.model)


def _halves(state: TrainState, batch: Batch, training: TrainingConfig, is_last: bool) -> list[Batch]:
    pairs = len(batch["labels"])
    budgets = (
        f"training.max_source_tokens={training.max_source_tokens} and "
        f"training.max_target_tokens={training.max_target_tokens}"
    )
    if state.accelerator.num_processes > 1 and (is_last or not _can_fail_alone(state)):
        raise ValueError(
            f"process {state.accelerator.process_index} has no memory for a batch of {pairs} pairs, which all "
            f"processes compute together; lower {budgets}"
        )
    if pairs == 1:
        raise ValueError(
            f"there is no memory for a single pair of {batch.source_tokens} source and {batch.target_tokens} target "
            f"tokens; lower data.max_length or the model's sizes ({budgets} allow such a pair)"
        )
    return batch.halves()


def clip_gradients(state: TrainState, max_norm: float | None) -> torch.Tensor:
    """Clip the gradients' global norm (`None`: do not); the norm before, the same in every process."""
    if isinstance(state.optimizer, ZeroOptimizer):
        return state.optimizer.gradient_norm()  # its step clips
    parameters = list(state.model.parameters())
    if max_norm is not None:
        norm = state.accelerator.clip_grad_norm_(parameters, max_norm)
        assert norm is not None
    else:
        state.accelerator.unscale_gradients()  # fp16 gradients are scaled; clipping unscales them by itself
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    return norm.full_tensor() if isinstance(norm, DTensor) else norm
