# SPDX-License-Identifier: Apache-2.0
"""Section 5 of the paper: the training loop, on Accelerate."""

import logging
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice

import torch

from vanilla_transformer.data.batches import StreamingTokenBatches
from vanilla_transformer.training.configuration import RunConfig
from vanilla_transformer.training.export import write_finished_model
from vanilla_transformer.training.gradients import backward, clip_gradients, skip_update
from vanilla_transformer.training.preparation import Run, prepare_run
from vanilla_transformer.training.reporting import ProgressReport
from vanilla_transformer.training.validation import validate

logger = logging.getLogger(__name__)

EXIT_STATUS_OF_A_STOPPED_RUN = 3  # a signal asked for the end; the same command goes on


def train(config: RunConfig) -> Run:
    """Train as configured, resuming where an earlier run of the same configuration stopped.

    Writes `output_dir/model`, the finished model in Hub format, and `output_dir/results.json`.

    Raises:
        ValueError, FileNotFoundError, PermissionError: unusable data, configuration or folder, before any update.
        ValueError: training.max_skipped_in_a_row updates without a finite loss and gradient, or a pair that does not
            fit in memory.
        SystemExit: SIGINT or SIGTERM came; a checkpoint was written.
    """
    run = prepare_run(config)
    settings, progress = config.training, run.progress
    run.model.train()
    with stop_requests() as stop, ProgressReport(run) as report:
        skipped_in_a_row = 0
        start = time.perf_counter()
        for micro_batches in updates(run):
            loss, likelihood, tokens_on_device = backward(run, micro_batches)
            norm = clip_gradients(run)
            is_finite = torch.isfinite(loss) & torch.isfinite(norm)
            tokens = int(tokens_on_device)  # waits for the device, so that the clock counts its work
            start, before = time.perf_counter(), start
            progress.seconds += start - before
            # Asked before the step, whose time counts for the next update: so one reduction tells both.
            is_over, is_skipped = agreed(run, bool(stop) or is_complete(run), not is_finite)
            skipped_in_a_row = skipped_in_a_row + 1 if is_skipped else 0
            if is_skipped:
                report.show_skipped(skipped_in_a_row, float(norm))
                skip_update(run, skipped_in_a_row)
            else:
                run.optimizer.step()
                run.optimizer.zero_grad()
                run.schedule.step()  # once per update, not per micro-batch
                progress.updates += 1
                progress.target_tokens += tokens
                report.add(loss, likelihood, tokens)

            if is_over or is_complete(run):
                break
            if is_skipped:
                continue  # the same number of updates as before, whose checkpoint is written
            before = time.perf_counter()
            if progress.updates % settings.validate_every == 0 and run.corpora.validation is not None:
                report.show_validation(validate(run))
            if progress.updates % settings.checkpoint_every == 0:
                run.checkpoints.save(progress)
            start += time.perf_counter() - before
        run.checkpoints.save(progress)
        is_stopped, is_done = agreed(run, bool(stop), is_complete(run))
        if is_stopped and not is_done:
            report.write(f"stopped after {progress.updates} updates, checkpoint written; the same command goes on")
            raise SystemExit(EXIT_STATUS_OF_A_STOPPED_RUN)
        validation = validate(run) if run.corpora.validation is not None else None
        if validation is not None:
            report.show_validation(validation)
            if validation.is_best:
                run.checkpoints.save(progress)  # again: a longer run must not take a worse model for the best
    write_finished_model(run, validation)
    run.accelerator.end_training()
    return run


def updates(run: Run) -> Iterator[list[dict[str, torch.Tensor]]]:
    """The micro-batches of each update, epoch after epoch, from where `run.progress` stands.

    An update never spans two epochs: the last one of an epoch may have fewer micro-batches. Nothing is dropped.
    """
    progress, accumulation = run.progress, run.config.training.gradient_accumulation_steps
    while not is_complete(run):
        run.order.set_epoch(progress.epoch, start_batch=progress.batches)
        batches = iter(run.batches)
        while micro_batches := list(islice(batches, accumulation)):
            progress.batches += len(micro_batches)
            yield micro_batches
        progress.epoch += 1
        progress.batches = 0
        if isinstance(run.order, StreamingTokenBatches):
            logger.info(f"data.train, epoch {progress.epoch}: {run.corpora.dropped}, in all that was read so far")


def is_complete(run: Run) -> bool:
    """Whether one of max_updates, max_epochs and max_minutes is reached."""
    settings, progress = run.config.training, run.progress
    reached = [
        settings.max_updates is not None and progress.updates >= settings.max_updates,
        settings.max_epochs is not None and progress.epoch >= settings.max_epochs,
        settings.max_minutes is not None and progress.seconds >= settings.max_minutes * 60,
    ]
    return any(reached)


def agreed(run: Run, *here: bool) -> list[bool]:
    """Whether any process says so, for each question: clocks and signals differ, but all processes must act alike."""
    if run.accelerator.num_processes == 1:
        return list(here)
    return (run.sum_over_processes(torch.tensor(here, dtype=torch.int64)) > 0).tolist()


@contextmanager
def stop_requests() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM, so that the update under way ends before the checkpoint is written."""
    received: list[int] = []
    signals = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda number, frame: received.append(number)) for number in signals]
    try:
        yield received
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)
