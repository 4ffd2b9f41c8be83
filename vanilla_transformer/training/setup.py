# SPDX-License-Identifier: Apache-2.0
"""Everything before the first update: device, corpora, model, optimizer, and the checkpoint of an earlier part."""

import logging
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import patch_environment
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedTokenizerBase

from vanilla_transformer.data.batches import StreamingTokenBatches, TokenBatchSampler
from vanilla_transformer.data.corpus import load_references
from vanilla_transformer.data.mixture import by_name
from vanilla_transformer.distributed.deepspeed_zero import ZeroOptimizer, shard_optimizer, zero_requested
from vanilla_transformer.distributed.fsdp import check_launch_options, fsdp_requested, is_sharded, shard_model
from vanilla_transformer.distributed.processes import main_process_first
from vanilla_transformer.language_tags import TARGET_TAGS
from vanilla_transformer.seq2seq_base import BaseForConditionalGeneration
from vanilla_transformer.training.batch import PreparedAhead
from vanilla_transformer.training.checkpoint import CHECKPOINTS, Checkpoints
from vanilla_transformer.training.configuration import RunConfig, TrainingConfig
from vanilla_transformer.training.corpora import (
    Corpora,
    all_tags,
    check_same_corpora,
    joined_text,
    load_texts,
    make_batches,
    prepare_corpora,
    target_tags_of,
)
from vanilla_transformer.training.device import (
    LAUNCH_OPTIONS,
    idle_devices,
    seed_each_process,
    settle_gradient_buckets,
    start_accelerator,
)
from vanilla_transformer.training.finetuning import FineTuningConfig
from vanilla_transformer.training.lora import add_adapter
from vanilla_transformer.training.model import build_model, configure_for_training, load_base_model
from vanilla_transformer.training.optimizer import RunLength, build_optimizer
from vanilla_transformer.training.output_dir import claim_output_dir
from vanilla_transformer.training.run_tokenizer import prepare_tokenizer
from vanilla_transformer.training.schedule import follow_run_length
from vanilla_transformer.training.train_state import Progress, TrainState
from vanilla_transformer.training.vocabulary import extend_vocabulary, train_new_rows, vocabulary_sizes

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """A run that is set up.

    Args:
        state: what updates change.
        sampler, batches: `batches` prepares the micro-batches of the epoch that `sampler` is set to.
        validation_batches: of each validation corpus.
        length: the updates of the whole run.
    """

    config: RunConfig | FineTuningConfig
    state: TrainState
    tokenizer: PreTrainedTokenizerBase
    corpora: Corpora
    sampler: TokenBatchSampler | StreamingTokenBatches
    batches: PreparedAhead
    validation_batches: dict[str, PreparedAhead]
    checkpoints: Checkpoints
    length: RunLength

    @property
    def output_dir(self) -> Path:
        return Path(self.config.training.output_dir)

    def epochs(self) -> float:
        """Epochs so far; for a stream, whose length nobody knows, the finished ones."""
        progress = self.state.progress
        if isinstance(self.sampler, StreamingTokenBatches) or self.sampler.epoch != progress.epoch:
            return float(progress.epoch)  # the next epoch has not begun
        return progress.epoch + self.sampler.fraction_consumed(progress.batches)


def set_up(config: RunConfig | FineTuningConfig) -> Run:
    """Everything before the first update, or before the next one of a run that stopped.

    Raises:
        ValueError, FileNotFoundError, PermissionError: unusable data, model, configuration or folder; unsupported
            options of the launcher.
        RuntimeError: a process has ended.
    """
    if config.data.train is None:  # before a folder is made
        raise ValueError("data.train is missing: give data.train.source and data.train.target, or data.train.path")
    check_launch_options(LAUNCH_OPTIONS)
    use_fsdp, use_zero = fsdp_requested(), zero_requested(config.training.mixed_precision)
    if isinstance(config, FineTuningConfig) and (use_fsdp or use_zero):
        raise ValueError("fine-tuning shares batches among processes, not weights: launch it without FSDP or DeepSpeed")
    if isinstance(config, RunConfig) and config.optimizer.name == "muon" and (use_fsdp or use_zero):
        raise ValueError("optimizer.name='muon' orthogonalises whole matrices: launch it without FSDP or DeepSpeed")
    model = load_base_model(config) if isinstance(config, FineTuningConfig) else None
    with patch_environment(accelerate_use_deepspeed="false"):  # `deepspeed_zero` starts DeepSpeed
        with main_process_first():
            claim_output_dir(config)
        accelerator = start_accelerator(config.training)
    _check_tokens_per_update(config.training, accelerator.num_processes)
    with main_process_first():
        texts, tests = load_texts(config.data.train), {}
        if isinstance(config, RunConfig):  # now, so that errors do not wait until training has ended
            tests = {name: load_references(corpus) for name, corpus in by_name("test", config.data.test).items()}
        output_dir, tags = Path(config.training.output_dir), all_tags(config.data)
        section = config.tokenizer if isinstance(config, RunConfig) else config.tokenizer_config()
        tokenizer = prepare_tokenizer(section, joined_text(texts), output_dir, tags)
        corpora = prepare_corpora(config.data, texts, tokenizer, config.training.seed, tests)
    sampler, batches = make_batches(corpora.train, config.training, tokenizer, accelerator, mixture=corpora.mixture)
    validation_batches = {
        name: make_batches(corpus.pairs, config.training, tokenizer, accelerator, shuffle=False)[1]
        for name, corpus in corpora.validation.items()
    }
    if isinstance(config, RunConfig):
        model = build_model(config, tokenizer)
    assert model is not None
    if isinstance(config, FineTuningConfig):
        sizes = vocabulary_sizes(model)
        extend_vocabulary(model, tokenizer)
        if config.lora is not None:
            add_adapter(model, config.lora)
            train_new_rows(model, sizes)
    if target_tags := target_tags_of(config.data, tokenizer):
        known = getattr(model.generation_config, TARGET_TAGS, None) or {}
        setattr(model.generation_config, TARGET_TAGS, known | target_tags)
    configure_for_training(model, config.training)
    progress = Progress(
        processes=accelerator.num_processes,
        pairs=corpora.pairs(),
        corpus=corpora.fingerprint,
        validation_corpus=corpora.validation_fingerprint,
    )
    length = RunLength(config.training, sampler, progress)
    wrapped, optimizer, schedule = _distribute(config, accelerator, model, length, use_fsdp, use_zero)
    settle_gradient_buckets(wrapped, accelerator)
    seed_each_process(config.training.seed, accelerator)
    state = TrainState(accelerator, wrapped, optimizer, schedule, progress)
    checkpoints = Checkpoints(Path(config.training.output_dir) / CHECKPOINTS, config.training, tokenizer, state)
    run = Run(config, state, tokenizer, corpora, sampler, batches, validation_batches, checkpoints, length)
    checkpoint = checkpoints.load_latest()
    if checkpoint is None and isinstance(config, FineTuningConfig) and config.optimizer.keep_state:
        state.load_moments(Path(config.model))
    if checkpoint is not None:
        check_same_corpora(progress, corpora, run.output_dir)
        _resume_epoch(run)
    if accelerator.is_main_process:
        _describe(run, checkpoint)
    if checkpoint is not None:
        _follow_length(run)
    accelerator.init_trackers("vanilla_transformer")
    return run


def _check_tokens_per_update(training: TrainingConfig, processes: int) -> None:
    least = processes * training.max_target_tokens
    if training.tokens_per_update is not None and training.tokens_per_update < least:
        raise ValueError(
            f"training.tokens_per_update={training.tokens_per_update} must be at least {least}: one micro-batch of "
            f"training.max_target_tokens={training.max_target_tokens} in each of {processes} processes"
        )


def _distribute(
    config: RunConfig | FineTuningConfig,
    accelerator: Accelerator,
    model: BaseForConditionalGeneration,
    length: RunLength,
    use_fsdp: bool,
    use_zero: bool,
) -> tuple[torch.nn.Module, torch.optim.Optimizer, LambdaLR]:
    """The model with its optimizer and schedule, wrapped for DDP, FSDP2 or ZeRO-2."""
    if use_fsdp:
        model = shard_model(model, accelerator)
    optimizer, schedule = build_optimizer(config.optimizer, model, length.expected)
    if use_fsdp or (use_zero and accelerator.num_processes > 1):
        # Moved to its device: in "evaluation mode" Accelerate wraps nothing around it.
        wrapped = accelerator.prepare_model(model, evaluation_mode=True)
        if use_fsdp:
            return wrapped, accelerator.prepare_optimizer(optimizer), schedule
        return *shard_optimizer(wrapped, optimizer, accelerator, config.optimizer.max_grad_norm), schedule
    return *accelerator.prepare(model, optimizer), schedule


def _resume_epoch(run: Run) -> None:
    """Skip the batches that are consumed; another number of processes goes on from the same place."""
    progress, processes = run.state.progress, run.state.accelerator.num_processes
    run.sampler.set_consumed(progress.begun_epoch, progress.begun_pairs)
    if progress.processes != processes:
        if run.state.accelerator.is_main_process:
            before, now = (
                count * run.config.training.micro_batches(count) for count in (progress.processes, processes)
            )
            logger.warning(
                f"processes: {progress.processes} before, {processes} now; the batches go on in the same order, each "
                "pair once an epoch, but the weights will not be exactly those of an uninterrupted run: different are "
                f"the number of batches in an update ({before} before, {now} now), "
                "the last batches of an epoch, and dropout's random numbers"
            )
        consumed = run.sampler.count_consumed(progress.epoch, progress.processes, progress.batches)
        progress.processes, progress.batches = processes, 0
        progress.begun_epoch, progress.begun_pairs, progress.begun_updates = progress.epoch, consumed, progress.updates
        run.sampler.set_consumed(progress.epoch, consumed)
    run.sampler.set_epoch(progress.epoch, progress.batches)


def _follow_length(run: Run) -> None:
    """Let the learning rate follow an end of the run that has changed, and log its jump."""
    assert isinstance(run.state.schedule, LambdaLR)
    before, now = follow_run_length(run.state.schedule)
    if not math.isclose(now, before) and run.state.accelerator.is_main_process:
        logger.info(
            f"the learning rate decays to zero at {run.length}; for the next update it "
            f"{'rises' if now > before else 'falls'} from {before:.2e} to {now:.2e}"
        )


def _describe(run: Run, checkpoint: Path | None) -> None:
    """Log one line each on model, device, data and checkpoint."""
    state, sampler = run.state, run.sampler
    model, accelerator = state.bare_model(), state.accelerator
    sizes = " and ".join(f"{size:,}" for size in dict.fromkeys(vocabulary_sizes(model)))
    logger.info(f"model: {model.num_parameters():,} parameters, vocabulary of {sizes}")
    logger.info(
        f"device: {accelerator.num_processes} x {accelerator.device.type}{idle_devices(accelerator)}, mixed precision "
        f"{accelerator.mixed_precision}, {torch.get_num_threads()} threads"
        f"{', weights sharded by FSDP2' if is_sharded(model) else ''}"
        f"{', moments sharded by ZeRO-2' if isinstance(state.optimizer, ZeroOptimizer) else ''}"
        f"{', layers compiled' if run.config.training.compile else ''}"
    )
    if isinstance(sampler, TokenBatchSampler):
        logger.info(
            f"batches: {len(sampler):,} an epoch for each process, "
            f"{sampler.padding_share():.1%} of their positions padding"
        )
    training, processes = run.config.training, accelerator.num_processes
    if training.tokens_per_update is not None:
        steps, budget = training.micro_batches(processes), training.max_target_tokens
        logger.info(
            f"training.tokens_per_update={training.tokens_per_update}: {processes} processes x {steps} micro-batches x "
            f"{budget:,} target tokens = {processes * steps * budget:,}"
        )
    if checkpoint is not None:
        progress = state.progress
        logger.info(f"resuming from {checkpoint}: {progress.updates} updates, {progress.seconds / 60:.1f} minutes")
