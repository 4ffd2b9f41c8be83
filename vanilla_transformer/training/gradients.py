# SPDX-License-Identifier: Apache-2.0
"""The gradients of one update: computed in parts that fit the memory, and judged before they change a weight."""

from contextlib import AbstractContextManager, nullcontext

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch.distributed.tensor import DTensor

from vanilla_transformer.distributed.deepspeed_zero import ZeroOptimizer
from vanilla_transformer.loss import IGNORED
from vanilla_transformer.training.checkpoint import list_checkpoints
from vanilla_transformer.training.preparation import Run


def backward(run: Run, micro_batches: list[dict[str, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of the mean loss over the target tokens of the whole update: all micro-batches, all processes.

    A micro-batch that does not fit in memory is halved along its pairs, again and again where it must be. All
    gradients of the update are then dropped and computed anew: they are those of the whole up to rounding, except
    that dropout draws other masks.

    Returns:
        This process's part of the smoothed loss and of the negative log-likelihood (their sums over the processes
        are the update's means), and the update's number of target tokens, on the device.

    Raises:
        ValueError: a single pair does not fit; or a micro-batch does not and there are several processes, of which
            one cannot begin anew while the others wait for its gradients.
    """
    mine = torch.tensor(sum(int((batch["labels"] != IGNORED).sum()) for batch in micro_batches))
    tokens = run.sum_over_processes(mine)
    parts = list(micro_batches)
    loss, likelihood, too_large = _accumulate(run, parts, tokens)
    while too_large is not None:
        halves = _halves(run, parts[too_large])
        run.optimizer.zero_grad()  # a backward pass that failed has left some of its gradients
        clear_device_cache(garbage_collection=True)
        run.progress.halved_batches += 1
        parts[too_large : too_large + 1] = halves
        loss, likelihood, too_large = _accumulate(run, parts, tokens)
    return loss, likelihood, tokens


def _accumulate(
    run: Run, parts: list[dict[str, torch.Tensor]], tokens: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, int | None]:
    """Add every part's gradients; the third result is the index of a part that does not fit in memory, if any."""
    accelerator = run.accelerator
    loss = likelihood = torch.zeros((), device=accelerator.device)
    for index, batch in enumerate(parts):
        try:
            with _part_of_an_update(run, is_last=index == len(parts) - 1):
                batch = {name: tensor.to(accelerator.device, non_blocking=True) for name, tensor in batch.items()}
                output = run.model(**batch, num_items_in_batch=tokens, skip_logits=True)
                # DistributedDataParallel, FSDP2 and ZeRO take the mean of the processes' gradients; we need their sum.
                accelerator.backward(output.loss * accelerator.num_processes)
        except RuntimeError as error:
            if not should_reduce_batch_size(error):
                raise
            return loss, likelihood, index  # not from here: the error holds what the failed pass has allocated
        loss = loss + output.loss.detach()
        likelihood = likelihood + output.negative_log_likelihood
    return loss, likelihood, None


def _part_of_an_update(run: Run, is_last: bool) -> AbstractContextManager:
    """Gradients go to the other processes with those of the last part.

    Where they are shared out, each part's go at once: whole ones would take the memory that is spared.
    """
    if isinstance(run.optimizer, ZeroOptimizer):
        run.optimizer.begin_part(is_last)
        return nullcontext()
    return nullcontext() if is_last or run.sharing else run.accelerator.no_sync(run.model)


def _halves(run: Run, batch: dict[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
    """The first and the second half of a batch's pairs.

    Raises:
        ValueError: there is but one pair, or there are several processes.
    """
    pairs, settings = len(batch["labels"]), run.config.training
    budgets = (
        f"training.max_source_tokens={settings.max_source_tokens} and "
        f"training.max_target_tokens={settings.max_target_tokens}"
    )
    if run.accelerator.num_processes > 1:
        raise ValueError(
            f"process {run.accelerator.process_index} has no memory for a batch of {pairs} pairs, and several "
            f"processes cannot go on with a smaller one; lower {budgets}"
        )
    if pairs == 1:
        source, target = int(batch["attention_mask"].sum()), int((batch["labels"] != IGNORED).sum())
        raise ValueError(
            f"there is no memory for a single pair of {source} source and {target} target tokens; lower "
            f"data.max_length={run.config.data.max_length} or the model's sizes ({budgets} allow such a pair)"
        )
    middle = pairs // 2
    return [{name: tensor[rows] for name, tensor in batch.items()} for rows in (slice(0, middle), slice(middle, pairs))]


def clip_gradients(run: Run) -> torch.Tensor:
    """Clip the gradients' global norm as configured; the norm before, over all shards, the same in every process."""
    longest = run.config.optimizer.max_grad_norm
    if isinstance(run.optimizer, ZeroOptimizer):
        return run.optimizer.gradient_norm()  # its step clips
    if longest is not None:
        norm = run.accelerator.clip_grad_norm_(run.model.parameters(), longest)
        assert norm is not None
    else:
        run.accelerator.unscale_gradients()  # of fp16, as clipping does
        norm = torch.nn.utils.get_total_norm([p.grad for p in run.model.parameters() if p.grad is not None])
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def skip_update(run: Run, in_a_row: int) -> None:
    """Drop the gradients: weights, Adam's state and the schedule stay as they are, and the batches are consumed.

    Args:
        in_a_row: skipped updates since the last that was made, with this one; resuming counts from 0 again.

    Raises:
        ValueError: they are training.max_skipped_in_a_row.
    """
    run.progress.skipped_updates += 1
    run.optimizer.zero_grad()
    if run.accelerator.scaler is not None:
        run.accelerator.scaler.update()  # of fp16: a smaller factor for the next
    if in_a_row < run.config.training.max_skipped_in_a_row:
        return
    checkpoints = list_checkpoints(run.checkpoints.folder)
    where = f"the last good checkpoint is {checkpoints[-1]}" if checkpoints else "there is no checkpoint yet"
    raise ValueError(
        f"{in_a_row} updates in a row were skipped after update {run.progress.updates}, because their loss or gradient "
        f"was not finite; nothing was written since, and {where}. Try a lower optimizer.learning_rate_scale, "
        "optimizer.max_grad_norm=1.0 or training.mixed_precision=no, in another training.output_dir"
    )
