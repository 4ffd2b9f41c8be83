# SPDX-License-Identifier: Apache-2.0
"""What stands before the first update: device, corpora, model, and the state of an earlier part of the run."""

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import ProjectConfiguration, broadcast_object_list, patch_environment, set_seed
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from transformers import AutoModelForSeq2SeqLM, GenerationConfig, PreTrainedTokenizerBase

from vanilla_transformer.data.batches import StreamingTokenBatches, TokenBatchSampler
from vanilla_transformer.distributed.deepspeed_zero import ZeroOptimizer, is_zero_asked_for, share_optimizer
from vanilla_transformer.distributed.fsdp import is_sharded, is_sharding_asked_for, shard, whole_weights
from vanilla_transformer.distributed.processes import process_state
from vanilla_transformer.seq2seq_base import BaseForConditionalGeneration
from vanilla_transformer.training.checkpoint import CHECKPOINTS, Checkpoints
from vanilla_transformer.training.configuration import RunConfig, model_config_of
from vanilla_transformer.training.corpora import Corpora, check_same_text, make_batches, prepare_corpora
from vanilla_transformer.training.output_dir import claim_output_dir
from vanilla_transformer.training.progress import Progress
from vanilla_transformer.training.run_state import RunState
from vanilla_transformer.training.schedule import paper_schedule

logger = logging.getLogger(__name__)


@dataclass
class Run:
    """Everything that a run holds.

    `batches` are the micro-batches of the epoch that `order` is set to; `validation_batches` is `None` without such a
    corpus; `sharing` is whether FSDP2 shares out the model among the processes.
    """

    config: RunConfig
    accelerator: Accelerator
    sharing: bool
    output_dir: Path
    tokenizer: PreTrainedTokenizerBase
    corpora: Corpora
    order: TokenBatchSampler | StreamingTokenBatches
    batches: DataLoader
    validation_batches: DataLoader | None
    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    schedule: LambdaLR
    progress: Progress
    checkpoints: Checkpoints

    def bare_model(self) -> BaseForConditionalGeneration:
        """The model itself, without what Accelerate has wrapped around it."""
        return self.accelerator.unwrap_model(self.model)

    def whole_model(self) -> BaseForConditionalGeneration:
        """The model itself with all its weights, for each process to use in its own time.

        Of a sharded model it is a copy, for which all processes have to call this together.
        """
        model = self.bare_model()
        if not is_sharded(model):
            return model
        with torch.random.fork_rng(devices=[]):  # the copy's first weights, drawn on the CPU, are not the run's
            whole = prepare_model(self.config, self.tokenizer)
        whole.to(self.accelerator.device)
        whole.load_state_dict(whole_weights(model))
        return whole.train(model.training)

    def epochs(self) -> float:
        """Epochs so far; of a stream, whose length nobody knows, the finished ones."""
        if isinstance(self.order, StreamingTokenBatches):
            return float(self.progress.epoch)
        if self.order.epoch != self.progress.epoch:  # the next one has not begun
            return float(self.progress.epoch)
        return self.progress.epoch + self.order.fraction_consumed(self.progress.batches)

    def sum_over_processes(self, here: torch.Tensor) -> torch.Tensor:
        """The sum of every process's tensor, on this process's device."""
        total = self.accelerator.reduce(here.to(self.accelerator.device), reduction="sum")
        assert isinstance(total, torch.Tensor)
        return total


def prepare_run(config: RunConfig) -> Run:
    """Everything before the first update, and the state of an earlier part of the same run.

    Raises:
        ValueError, FileNotFoundError, PermissionError: unusable data, configuration or folder; a way to share out the
            model that `sharding` or `zero` refuses.
    """
    if config.data.train is None:  # before a folder is made
        raise ValueError("data.train is missing: give data.train.source and data.train.target, or data.train.path")
    sharing, sharing_averages = is_sharding_asked_for(), is_zero_asked_for(config.training.mixed_precision)
    with patch_environment(accelerate_use_deepspeed="false"):  # Accelerate's way with it is not taken: see `zero`
        with process_state().main_process_first():
            output_dir = claim_output_dir(config)
        accelerator = start_accelerator(config)
    with accelerator.main_process_first():
        tokenizer, corpora = prepare_corpora(config, output_dir)
    model = prepare_model(config, tokenizer)
    if sharing:
        model = shard(model, accelerator)
    optimizer, schedule = prepare_optimizer(config, model)
    if sharing:  # already; `evaluation_mode` is Accelerate's word for wrapping nothing around it
        model = accelerator.prepare_model(model, evaluation_mode=True)
        optimizer = accelerator.prepare_optimizer(optimizer)
    elif sharing_averages and accelerator.num_processes > 1:
        model = accelerator.prepare_model(model, evaluation_mode=True)
        model, optimizer = share_optimizer(model, optimizer, accelerator, config.optimizer.max_grad_norm)
    else:
        model, optimizer = accelerator.prepare(model, optimizer)
    progress = Progress(
        processes=accelerator.num_processes,
        pairs=corpora.pairs(),
        corpus=corpora.fingerprint,
        validation_corpus=corpora.validation_fingerprint,
    )
    state = RunState(accelerator, model, optimizer, schedule, progress)
    order, batches = make_batches(corpora.train, config, tokenizer, accelerator, shuffle=True)
    validation_batches = None
    if corpora.validation is not None:
        _, validation_batches = make_batches(corpora.validation, config, tokenizer, accelerator, shuffle=False)
    run = Run(
        config=config,
        accelerator=accelerator,
        sharing=sharing,
        output_dir=output_dir,
        tokenizer=tokenizer,
        corpora=corpora,
        order=order,
        batches=batches,
        validation_batches=validation_batches,
        model=model,
        optimizer=optimizer,
        schedule=schedule,
        progress=progress,
        checkpoints=Checkpoints(output_dir / CHECKPOINTS, config.training, tokenizer, state),
    )
    resumed_from = run.checkpoints.load_latest()
    if resumed_from is not None:
        _check_resumed(run)
    if accelerator.is_main_process:
        describe(run, resumed_from)
    accelerator.init_trackers("vanilla_transformer")
    return run


def describe(run: Run, resumed_from: Path | None) -> None:
    """One line each on model, device, data and the point of departure."""
    model, accelerator, order = run.bare_model(), run.accelerator, run.order
    logger.info(f"model: {model.num_parameters():,} parameters, vocabulary of {model.config.vocab_size:,}")
    logger.info(
        f"device: {accelerator.num_processes} x {accelerator.device.type}, mixed precision "
        f"{accelerator.mixed_precision}, {torch.get_num_threads()} threads"
        f"{', weights shared out by FSDP2' if run.sharing else ''}"
        f"{', averages shared out by ZeRO-2' if isinstance(run.optimizer, ZeroOptimizer) else ''}"
    )
    if isinstance(order, TokenBatchSampler):
        logger.info(
            f"batches: {len(order):,} an epoch for each process, {order.padding_share():.1%} of their positions padding"
        )
    if resumed_from is not None:
        logger.info(
            f"resuming from {resumed_from}: {run.progress.updates} updates, {run.progress.seconds / 60:.1f} minutes"
        )


def start_accelerator(config: RunConfig) -> Accelerator:
    """Accelerate with the run's precision and trackers; the seed is set."""
    output_dir = Path(config.training.output_dir)
    precision = config.training.mixed_precision
    if precision == "auto":
        answers = ["bf16" if bfloat16_is_faster() else "no"]
        precision = broadcast_object_list(answers)[0]  # one answer for all processes
    available = [str(tracker) for tracker in get_available_trackers()]
    for name in config.training.trackers:  # Accelerate would go on without one that is not installed
        if name not in available:
            raise ValueError(
                f"training.trackers: {name!r} is unknown or not installed; there are {', '.join(available)}"
            )
    device = process_state().device
    assert device is not None
    accelerator = Accelerator(
        cpu=device.type == "cpu",
        mixed_precision=precision,
        log_with=[*config.training.trackers] or None,
        project_config=ProjectConfiguration(project_dir=str(output_dir), logging_dir=str(output_dir / "logs")),
        step_scheduler_with_optimizer=False,
    )
    set_seed(config.training.seed)
    return accelerator


def bfloat16_is_faster(size: int = 256, repeats: int = 5) -> bool:
    """Whether a square matrix product takes less time in bfloat16 than in float32 on this device.

    A CPU without bfloat16 instructions computes it, a hundred times slower; no list of names tells it as surely. On a
    CPU it is the time of one thread at work, which whatever else runs on the machine does not lengthen.
    """
    device = process_state().device  # an Accelerator would fix its precision here
    assert device is not None
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    clock = time.thread_time if device.type == "cpu" else time.perf_counter
    matrices = [torch.ones(size, size, dtype=dtype, device=device) for dtype in (torch.float32, torch.bfloat16)]
    seconds: list[list[float]] = [[], []]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for _ in range(repeats):
        for matrix, times in zip(matrices, seconds, strict=True):
            start = clock()
            (matrix @ matrix)[0, 0].item()  # item() waits for the device
            times.append(clock() - start)
    torch.set_num_threads(threads)
    return min(seconds[1]) < min(seconds[0])


def _check_resumed(run: Run) -> None:
    """What is left of an epoch is known by counting, so it must be the same corpus; another number of processes goes
    on from the same place."""
    progress, processes, pairs = run.progress, run.accelerator.num_processes, run.corpora.pairs()
    where, rest = run.output_dir, "the rest of the epoch is not known"
    check_same_text(where, "trained", progress.corpus, run.corpora.fingerprint, rest)
    check_same_text(
        where,
        "validated",
        progress.validation_corpus,
        run.corpora.validation_fingerprint,
        "scores cannot be compared with those before",
    )
    if progress.pairs != pairs:
        raise ValueError(
            f"{run.output_dir} was trained on {progress.pairs} pairs, and now data.train has {pairs}; give it the same "
            "corpus again, or choose another training.output_dir"
        )
    run.order.set_consumed(progress.begun_epoch, progress.begun_pairs)
    if progress.processes != processes:
        if run.accelerator.is_main_process:
            steps = run.config.training.gradient_accumulation_steps
            logger.warning(
                f"processes: {progress.processes} before, {processes} now; the batches go on in the same order, each "
                "pair once an epoch, but the weights will not be exactly those of an uninterrupted run; other than "
                f"there are the number of batches in an update ({progress.processes * steps} before, "
                f"{processes * steps} now), the last batches of an epoch, and dropout's random numbers"
            )
        taken = run.order.count_consumed(progress.epoch, progress.processes, progress.batches)
        progress.share_among(processes, taken)
        run.order.set_consumed(progress.epoch, taken)
    run.order.set_epoch(progress.epoch, progress.batches)


def prepare_model(config: RunConfig, tokenizer: PreTrainedTokenizerBase) -> BaseForConditionalGeneration:
    """A new model for the tokenizer's vocabulary, with the run's way of decoding as its generation config."""
    model_config = model_config_of(
        config.model,
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.bos_token_id,
    )
    try:
        model = AutoModelForSeq2SeqLM.from_config(model_config)
    except RuntimeError as error:  # of torch's allocator
        raise ValueError(
            f"there is no memory for the model {config.model}; lower its sizes in the section model "
            f"({' '.join(str(error).split())})"
        ) from error
    model.set_attn_implementation(config.training.attention)
    if config.training.gradient_checkpointing:
        model.activation_checkpointing_enable()
    generation = config.generation
    of_beams = {"length_penalty": generation.length_penalty, "early_stopping": True}  # refused beside greedy decoding
    model.generation_config = GenerationConfig(
        num_beams=generation.num_beams,
        **(of_beams if generation.num_beams > 1 else {}),
        alpha=generation.alpha,
        max_tokens_beyond_source=generation.max_tokens_beyond_source,
        pad_token_id=model_config.pad_token_id,
        bos_token_id=model_config.bos_token_id,
        eos_token_id=model_config.eos_token_id,
        decoder_start_token_id=model_config.decoder_start_token_id,
    )
    return model


def prepare_optimizer(config: RunConfig, model: BaseForConditionalGeneration) -> tuple[torch.optim.Optimizer, LambdaLR]:
    """Adam for the model's parameters, and the schedule of its rate (section 5.3)."""
    settings = config.optimizer
    optimizer = torch.optim.Adam(
        model.parameters(),
        lr=1.0,  # the schedule gives the rate itself
        betas=(settings.beta1, settings.beta2),
        eps=settings.eps,
        fused=True,
    )
    of_model: Any = model.config
    schedule = paper_schedule(optimizer, of_model.hidden_size, settings.warmup_steps, settings.learning_rate_scale)
    return optimizer, schedule
