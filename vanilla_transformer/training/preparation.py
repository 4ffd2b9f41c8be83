# SPDX-License-Identifier: Apache-2.0
"""What stands before the first update: device, tokenizer, pairs, batches, model."""

import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from accelerate import Accelerator, PartialState
from accelerate.utils import ProjectConfiguration, set_seed
from datasets import Dataset
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from transformers import DataCollatorForSeq2Seq, GenerationConfig, PreTrainedTokenizerFast

from vanilla_transformer.data.batches import TokenBatchSampler
from vanilla_transformer.data.corpus import load_corpus, prepare_pairs
from vanilla_transformer.data.tokenizer import load_tokenizer, train_tokenizer
from vanilla_transformer.modeling_vanilla_transformer import VanillaTransformerForConditionalGeneration
from vanilla_transformer.training.checkpoint import Checkpoints, Progress
from vanilla_transformer.training.configuration import RunConfig, model_config_of
from vanilla_transformer.training.schedule import paper_schedule

logger = logging.getLogger(__name__)

# What may change between the parts of a resumed run; everything else would make it another run.
MAY_CHANGE = {
    "training": {"resume", "max_updates", "max_epochs", "max_minutes", "log_every", "trackers", "keep_checkpoints"}
    | {"average_checkpoints", "validate_every", "checkpoint_every", "validation_beams", "validation_sentences"},
    "generation": {"num_beams", "length_penalty", "max_tokens_beyond_source", "batch_tokens"},
}


@dataclass
class Corpus:
    """A corpus as text and as tokens."""

    text: Dataset
    pairs: Dataset


@dataclass
class Run:
    """Everything that a run holds; `validation` and `validation_batches` are `None` without such a corpus."""

    config: RunConfig
    accelerator: Accelerator
    output_dir: Path
    tokenizer: PreTrainedTokenizerFast
    train: Corpus
    validation: Corpus | None
    batches: DataLoader
    validation_batches: DataLoader | None
    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    schedule: LambdaLR
    progress: Progress
    checkpoints: Checkpoints


def prepare_run(config: RunConfig) -> Run:
    """Everything before the first update, and the state of an earlier part of the same run.

    Raises:
        ValueError, FileNotFoundError, PermissionError: unusable data, configuration or folder.
    """
    data, settings, optimizer_config = config.data, config.training, config.optimizer
    if data.train is None:
        raise ValueError("data.train is missing: give data.train.source and data.train.target, or data.train.path")
    output_dir = claim_output_dir(config)
    accelerator = start_accelerator(config)
    with accelerator.main_process_first():
        text = load_corpus(data.train)
        tokenizer = prepare_tokenizer(config, text, output_dir)
        train = prepare_corpus("train", text, tokenizer, data.max_length)
        validation = data.validation and prepare_corpus(
            "validation", load_corpus(data.validation), tokenizer, data.max_length
        )
    model = prepare_model(config, tokenizer)
    optimizer = torch.optim.Adam(
        model.parameters(),
        lr=1.0,  # the schedule gives the rate itself
        betas=(optimizer_config.beta1, optimizer_config.beta2),
        eps=optimizer_config.eps,
        fused=True,
    )
    schedule = paper_schedule(
        optimizer, model.config.d_model, optimizer_config.warmup_steps, optimizer_config.learning_rate_scale
    )
    model, optimizer = accelerator.prepare(model, optimizer)
    progress = Progress()
    accelerator.register_for_checkpointing(schedule, progress)
    run = Run(
        config=config,
        accelerator=accelerator,
        output_dir=output_dir,
        tokenizer=tokenizer,
        train=train,
        validation=validation,
        batches=make_batches(train.pairs, config, tokenizer, accelerator, shuffle=True),
        validation_batches=validation and make_batches(validation.pairs, config, tokenizer, accelerator, shuffle=False),
        model=model,
        optimizer=optimizer,
        schedule=schedule,
        progress=progress,
        checkpoints=Checkpoints(accelerator, output_dir / "checkpoints", settings.keep_checkpoints, tokenizer),
    )
    resumed_from = run.checkpoints.load_latest() if settings.resume else None
    if accelerator.is_main_process:
        describe(run, resumed_from)
    accelerator.init_trackers("vanilla_transformer")
    return run


def describe(run: Run, resumed_from: Path | None) -> None:
    """One line each on model, device, data and the point of departure."""
    model = run.accelerator.unwrap_model(run.model)
    sampler, accelerator = run.batches.batch_sampler, run.accelerator
    logger.info(f"model: {model.num_parameters():,} parameters, vocabulary of {model.config.vocab_size:,}")
    logger.info(
        f"device: {accelerator.num_processes} x {accelerator.device.type}, mixed precision "
        f"{accelerator.mixed_precision}, {torch.get_num_threads()} threads"
    )
    logger.info(
        f"batches: {len(sampler):,} an epoch for each process, {sampler.padding_share():.1%} of their positions padding"
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
        precision = "bf16" if bfloat16_is_faster() else "no"
    accelerator = Accelerator(
        mixed_precision=precision,
        log_with=config.training.trackers or None,
        project_config=ProjectConfiguration(project_dir=str(output_dir), logging_dir=str(output_dir / "logs")),
        step_scheduler_with_optimizer=False,
    )
    set_seed(config.training.seed)
    return accelerator


def bfloat16_is_faster(size: int = 256, repeats: int = 5) -> bool:
    """Whether a square matrix product takes less time in bfloat16 than in float32 on this device.

    A CPU without bfloat16 instructions computes it, a hundred times slower; no list of names tells it as surely.
    """
    device = PartialState().device
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        matrix = torch.ones(size, size, dtype=dtype, device=device)
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            (matrix @ matrix)[0, 0].item()  # item() waits for the device
            times.append(time.perf_counter() - start)
        seconds[dtype] = min(times)
    return seconds[torch.bfloat16] < seconds[torch.float32]


def claim_output_dir(config: RunConfig) -> Path:
    """Make the run's folder and write the resolved configuration into it.

    Raises:
        ValueError: the folder holds a run with another configuration; the message names the first difference.
        PermissionError: the folder cannot be written.
    """
    output_dir = Path(config.training.output_dir)
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        resolved = output_dir / "config.yaml"
        values = config.to_dict()
        if resolved.exists() and (output_dir / "checkpoints").exists():
            difference = _first_difference(yaml.safe_load(resolved.read_text()), values)
            if difference:
                raise ValueError(
                    f"{output_dir} holds a run with another {difference}; "
                    "choose another training.output_dir, or remove that folder to start anew"
                )
        unfinished = output_dir / ".config.yaml"
        unfinished.write_text(yaml.safe_dump(values, sort_keys=False, allow_unicode=True))
        unfinished.rename(resolved)
    except (PermissionError, NotADirectoryError, FileExistsError) as error:
        raise PermissionError(f"training.output_dir={output_dir} cannot be written: {error.strerror}") from error
    return output_dir


def _first_difference(before: dict, now: dict) -> str | None:
    for section, values in now.items():
        old = before.get(section) or {}
        for key in sorted(set(old) | set(values)):
            if key not in MAY_CHANGE.get(section, ()) and old.get(key) != values.get(key):
                return f"{section}.{key} ({old.get(key)!r} there, {values.get(key)!r} now)"
    return None


def prepare_tokenizer(config: RunConfig, text: Dataset, output_dir: Path) -> PreTrainedTokenizerFast:
    """The run's tokenizer: the one in its folder, else the configured one, else trained on both sides of `text`."""
    folder = output_dir / "tokenizer"
    if folder.is_dir():
        return load_tokenizer(folder)
    if config.tokenizer.path is not None:
        tokenizer = load_tokenizer(config.tokenizer.path)
    else:
        tokenizer = train_tokenizer(_both_sides(text), config.tokenizer)
    unfinished = output_dir / ".tokenizer"
    tokenizer.save_pretrained(unfinished)
    unfinished.rename(folder)
    return tokenizer


def _both_sides(text: Dataset) -> Iterable[str]:
    for batch in text.iter(batch_size=1000):
        yield from batch["source"]
        yield from batch["target"]


def prepare_corpus(name: str, text: Dataset, tokenizer: PreTrainedTokenizerFast, max_length: int) -> Corpus:
    """Tokenise; what was dropped is logged."""
    pairs, dropped = prepare_pairs(text, tokenizer, max_length)
    if PartialState().is_main_process:
        logger.info(f"data.{name}: {dropped}")
    return Corpus(text, pairs)


def prepare_model(
    config: RunConfig, tokenizer: PreTrainedTokenizerFast
) -> VanillaTransformerForConditionalGeneration:
    """A new model for the tokenizer's vocabulary, with the run's way of decoding as its generation config."""
    model_config = model_config_of(
        config,
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.bos_token_id,
    )
    model = VanillaTransformerForConditionalGeneration(model_config)
    model.set_attn_implementation(config.training.attention)
    if config.training.gradient_checkpointing:
        model.activation_checkpointing_enable()
    generation = config.generation
    model.generation_config = GenerationConfig(
        num_beams=generation.num_beams,
        length_penalty=generation.length_penalty,
        max_tokens_beyond_source=generation.max_tokens_beyond_source,
        early_stopping=True,
        pad_token_id=model_config.pad_token_id,
        bos_token_id=model_config.bos_token_id,
        eos_token_id=model_config.eos_token_id,
        decoder_start_token_id=model_config.decoder_start_token_id,
    )
    return model


def make_batches(
    pairs: Dataset, config: RunConfig, tokenizer: PreTrainedTokenizerFast, accelerator: Accelerator, shuffle: bool
) -> DataLoader:
    """Batches by token budget, each process its own; `loader.batch_sampler` is our `TokenBatchSampler`."""
    sampler = TokenBatchSampler(
        pairs["source_length"],
        pairs["target_length"],
        max_source_tokens=config.training.max_source_tokens,
        max_target_tokens=config.training.max_target_tokens,
        seed=config.training.seed,
        shuffle=shuffle,
        num_processes=accelerator.num_processes,
        process_index=accelerator.process_index,
    )
    return DataLoader(
        pairs.select_columns(["input_ids", "labels"]),
        batch_sampler=sampler,
        collate_fn=DataCollatorForSeq2Seq(tokenizer),
    )
