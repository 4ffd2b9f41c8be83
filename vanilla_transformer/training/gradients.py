# SPDX-License-Identifier: Apache-2.0
"""The gradients of an update: accumulated in parts that fit in memory, clipped, or dropped if they are not finite."""

from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch.distributed.tensor import DTensor

from vanilla_transformer.distributed.deepspeed_zero import ZeroOptimizer
from vanilla_transformer.distributed.fsdp import is_sharded
from vanilla_transformer.distributed.processes import sum_over_processes
from vanilla_transformer.loss import IGNORE_INDEX
from vanilla_transformer.training.configuration import TrainingConfig
from vanilla_transformer.training.train_state import TrainState

Batch = dict[str, torch.Tensor]


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
    the update are computed anew. They equal those of the whole up to rounding, but dropout draws other masks.

    Raises:
        ValueError: a single pair does not fit; or a micro-batch does not, and there are several processes: one cannot
            begin anew while the others wait for its gradients.
    """
    tokens = torch.tensor(sum(int((batch["labels"] != IGNORE_INDEX).sum()) for batch in micro_batches))
    tokens = sum_over_processes(state.accelerator, tokens)
    parts = list(micro_batches)
    while True:
        loss, nll, too_large = _accumulate(state, parts, tokens)
        if too_large is None:
            return Losses(loss, nll, tokens)
        halves = _halves(state, parts[too_large], training)
        state.optimizer.zero_grad()  # the failed backward pass has left some gradients
        clear_device_cache(garbage_collection=True)
        state.progress.halved_batches += 1
        parts[too_large : too_large + 1] = halves


def _accumulate(
    state: TrainState, parts: list[Batch], tokens: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, int | None]:
    """Add every part's gradients; the third result is the index of a part that does not fit in memory, if any."""
    accelerator = state.accelerator
    loss = nll = torch.zeros((), device=accelerator.device)
    host_inputs = state.bare_model().host_inputs
    for index, batch in enumerate(parts):
        try:
            with _gradient_sync(state, is_last=index == len(parts) - 1):
                moved = {
                    name: tensor.to(accelerator.device, non_blocking=True)
                    for name, tensor in batch.items()
                    if name not in host_inputs
                }
                output = state.model(**batch | moved, num_items_in_batch=tokens, skip_logits=True)
                # DistributedDataParallel, FSDP2 and ZeRO take the mean of the processes' gradients; we need their sum.
                accelerator.backward(output.loss * accelerator.num_processes)
        except RuntimeError as error:
            if not should_reduce_batch_size(error):
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


def _halves(state: TrainState, batch: Batch, training: TrainingConfig) -> list[Batch]:
    pairs = len(batch["labels"])
    budgets = (
        f"training.max_source_tokens={training.max_source_tokens} and "
        f"training.max_target_tokens={training.max_target_tokens}"
    )
    if state.accelerator.num_processes > 1:
        raise ValueError(
            f"process {state.accelerator.process_index} has no memory for a batch of {pairs} pairs, and several "
            f"processes cannot go on with a smaller one; lower {budgets}"
        )
    if pairs == 1:
        source, target = int(batch["attention_mask"].sum()), int((batch["labels"] != IGNORE_INDEX).sum())
        raise ValueError(
            f"there is no memory for a single pair of {source} source and {target} target tokens; lower "
            f"data.max_length or the model's sizes ({budgets} allow such a pair)"
        )
    middle = pairs // 2
    return [{name: tensor[rows] for name, tensor in batch.items()} for rows in (slice(0, middle), slice(middle, pairs))]


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


def skip_update(state: TrainState) -> None:
    """Drop the gradients: weights, moments and schedule stay as they are, and the batches are consumed."""
    state.progress.skipped_updates += 1
    state.optimizer.zero_grad()
    if state.accelerator.scaler is not None:
        state.accelerator.scaler.update()  # fp16: a smaller factor for the next update


def apply_update(state: TrainState, tokens: int) -> None:
    """Step optimizer and schedule, once an update and not once a micro-batch; count the target tokens."""
    state.optimizer.step()
    state.optimizer.zero_grad()
    state.schedule.step()
    state.progress.updates += 1
    state.progress.target_tokens += tokens
