# SPDX-License-Identifier: Apache-2.0
"""Section 5 of the paper: the training loop, on Accelerate."""

import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice

import torch

from vanilla_transformer.data.batches import StreamingTokenBatches
from vanilla_transformer.distributed.processes import sum_over_processes
from vanilla_transformer.training.batch import Batch
from vanilla_transformer.training.configuration import RunConfig
from vanilla_transformer.training.device import deterministic_algorithms
from vanilla_transformer.training.export import export_model
from vanilla_transformer.training.finetuning import FineTuningConfig
from vanilla_transformer.training.gradients import backward, clip_gradients
from vanilla_transformer.training.reporting import ProgressReport, profiler
from vanilla_transformer.training.setup import Run, set_up
from vanilla_transformer.training.update_queue import Answers, Interval, UpdateQueue, decides_on_device
from vanilla_transformer.training.validation import Validation, validate

logger = logging.getLogger(__name__)

EXIT_STATUS_OF_A_STOPPED_RUN = 3  # SIGINT or SIGTERM ended it; the same command resumes


def train(config: RunConfig | FineTuningConfig) -> Run:
    """Train a new model, or fine-tune one, resuming where an earlier run of the same configuration stopped.

    Writes `output_dir/model`, the finished model in Hub format, `output_dir/results.json`, and with LoRA
    `output_dir/adapter`, which is merged into the model.

    Raises:
        ValueError, FileNotFoundError, PermissionError: unusable data, configuration or folder, before any update.
        ValueError: as `fit`.
        SystemExit: as `fit`.
    """
    with deterministic_algorithms(config.training.deterministic):
        run = set_up(config)
        validation = fit(run)
        export_model(run, validation)
        run.state.accelerator.end_training()
        return run


def fit(run: Run) -> Validation | None:
    """Update, validate and save as configured, until the configured end.

    Returns:
        The validation of the last weights; `None` without a validation corpus.

    Raises:
        ValueError: training.max_skipped_in_a_row updates without a finite loss and gradient, or a pair that does not
            fit in memory.
        SystemExit: SIGINT or SIGTERM came; a checkpoint was written.
    """
    state, training, optimizer = run.state, run.config.training, run.config.optimizer
    progress = state.progress
    state.model.train()
    with stop_requests() as stop, ProgressReport(run) as report, profiler(run) as profile:
        validation = Interval(progress, training.validate_every, training.validate_every_minutes)
        if not run.corpora.validation:
            validation = Interval(progress, None, None)
        result = None
        is_missing = validation.is_at(progress.updates) and progress.validated_updates < progress.updates
        if is_missing and not is_complete(run):  # a stop request, or the end of an earlier part, came first
            result = validate_now(run, report, validation)
        queue = UpdateQueue(run, report)
        checkpoint = Interval(progress, training.checkpoint_every, training.checkpoint_every_minutes)
        for micro_batches in updates(run):
            losses = backward(state, micro_batches, training)
            norm = clip_gradients(state, optimizer.max_grad_norm)
            seconds = queue.seconds()
            answers = Answers(
                bool(stop) or is_over(run, seconds), validation.is_due(seconds), checkpoint.is_due(seconds)
            )
            queue.add(losses, norm, answers, micro_batches)
            updates_before = progress.updates
            due = queue.settle(keep=0 if must_settle(run, queue, answers, validation, checkpoint) else 1)
            if profile is not None:
                profile.step()
            if due.end or progress.updates == training.max_updates:
                break
            if queue.pending:
                continue
            has_counted = progress.updates > updates_before  # otherwise what this number calls for has been done
            if due.validation or (has_counted and validation.is_at(progress.updates)):
                result = validate_now(run, report, validation)
                if is_out_of_patience(run):
                    report.write(
                        f"after update {progress.updates}: {progress.validations_since_best} validations in a row are "
                        f"no better by {training.best_by}, and training ends (training.patience={training.patience})"
                    )
                    break
            if due.checkpoint or (has_counted and checkpoint.is_at(progress.updates)):
                with checkpoint.timed():
                    run.checkpoints.save()
            queue.start_clock()  # validation and checkpoints are not counted
        queue.settle()
        run.checkpoints.save()
        run.checkpoints.wait()
        is_stopped, is_done = any_process(run, bool(stop), is_complete(run))
        if is_stopped and not is_done:
            report.write(f"stopped after {progress.updates} updates, checkpoint written; the same command goes on")
            raise SystemExit(EXIT_STATUS_OF_A_STOPPED_RUN)
        if not run.corpora.validation:
            return None
        if result is None or progress.validated_updates < progress.updates:
            result = validate_now(run, report, validation)
            if result.is_best:
                run.checkpoints.save()  # with best_score: a longer run must not take a worse model for the best
                run.checkpoints.wait()
        return result


def validate_now(run: Run, report: ProgressReport, interval: Interval) -> Validation:
    """Validate, and show the results."""
    with interval.timed():
        result = validate(run)
        report.show_validation(result)
    return result


def updates(run: Run) -> Iterator[list[Batch]]:
    """The micro-batches of each update, epoch after epoch, from where the run's progress stands.

    An update never spans two epochs: the last one of an epoch may have fewer micro-batches. Nothing is dropped.
    """
    progress = run.state.progress
    accumulation = run.config.training.micro_batches(run.state.accelerator.num_processes)
    if is_complete(run):
        return
    # No look at the clock here, which would end some processes an epoch before the others.
    while progress.epoch != run.config.training.max_epochs:
        run.sampler.set_epoch(progress.epoch, start_batch=progress.batches)
        batches = iter(run.batches)
        while micro_batches := list(islice(batches, accumulation)):
            progress.batches += len(micro_batches)
            yield micro_batches
        progress.epoch += 1
        progress.batches = 0
        if isinstance(run.sampler, StreamingTokenBatches):
            logger.info(f"data.train, epoch {progress.epoch}: {run.corpora.dropped}, in all that was read so far")


def must_settle(run: Run, queue: UpdateQueue, answers: Answers, *intervals: Interval) -> bool:
    """Whether the last update may be one after which something else comes, so that its results are needed now."""
    training = run.config.training
    updates = run.state.progress.updates + len(queue.pending)  # if none is skipped
    return (
        not decides_on_device(run.state)
        or (run.state.accelerator.num_processes == 1 and any(answers))  # of several, all know at the next update
        or updates == training.max_updates
        or any(interval.is_at(updates) for interval in intervals)
        or queue.skipped_in_a_row + len(queue.pending) >= training.max_skipped_in_a_row
    )


def is_over(run: Run, seconds: float) -> bool:
    """Whether max_minutes are over."""
    return run.config.training.max_minutes is not None and seconds >= run.config.training.max_minutes * 60


def is_complete(run: Run) -> bool:
    """Whether max_updates, max_epochs, max_minutes or patience is reached."""
    training, progress = run.config.training, run.state.progress
    return (
        (training.max_updates is not None and progress.updates >= training.max_updates)
        or (training.max_epochs is not None and progress.epoch >= training.max_epochs)
        or is_over(run, progress.seconds)
        or is_out_of_patience(run)
    )


def is_out_of_patience(run: Run) -> bool:
    """Whether `training.patience` validations in a row were no better; all processes count the same ones."""
    patience = run.config.training.patience
    return patience is not None and run.state.progress.validations_since_best >= patience


def any_process(run: Run, *answers: bool) -> list[bool]:
    """For each answer, whether any process gives it: clocks and signals differ, but all processes must act alike."""
    accelerator = run.state.accelerator
    if accelerator.num_processes == 1:
        return list(answers)
    return (sum_over_processes(accelerator, torch.tensor(answers, dtype=torch.int64)) > 0).tolist()


@contextmanager
def stop_requests() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM, so that the current update ends before the checkpoint is written."""
    received: list[int] = []
    signals = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda number, frame: received.append(number)) for number in signals]
    try:
        yield received
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)
