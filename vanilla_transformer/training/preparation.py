# SPDX-License-Identifier: Apache-2.0
"""What stands before the first update: device, tokenizer, pairs, batches, model."""

import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import ProjectConfiguration, broadcast_object_list, set_seed
from datasets import Dataset, IterableDataset
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from transformers import DataCollatorForSeq2Seq, GenerationConfig, PreTrainedTokenizerBase

from vanilla_transformer.data.batches import StreamingTokenBatches, TokenBatchSampler
from vanilla_transformer.data.corpus import CorpusConfig, DroppedPairs, load_corpus, prepare_pairs
from vanilla_transformer.data.tokenizer import load_tokenizer, train_tokenizer
from vanilla_transformer.evaluation.processes import process_state
from vanilla_transformer.modeling_vanilla_transformer import VanillaTransformerForConditionalGeneration
from vanilla_transformer.training.checkpoint import (
    CHECKPOINTS,
    Checkpoints,
    Progress,
    list_checkpoints,
    replaced_whole,
)
from vanilla_transformer.training.configuration import RunConfig, model_config_of
from vanilla_transformer.training.schedule import paper_schedule

logger = logging.getLogger(__name__)

# What may change between the parts of a resumed run; everything else would make it another run.
MAY_CHANGE = {
    "data": {"test", "name", "license", "source_language", "target_language"},
    "training": {
        "output_dir",
        "resume",
        "max_updates",
        "max_epochs",
        "max_minutes",
        "log_every",
        "trackers",
        "keep_checkpoints",
    }
    | {"average_checkpoints", "validate_every", "checkpoint_every", "validation_beams", "validation_sentences"},
    "generation": {"num_beams", "length_penalty", "max_tokens_beyond_source", "batch_tokens"},
}
MODEL_INPUTS = ("input_ids", "labels")


@dataclass
class Run:
    """Everything that a run holds; `validation`, `validation_batches` and `test` are `None` without such a corpus.

    `dropped` counts what was left out of `train`. `batches` are the micro-batches of the epoch that `order` is set to.
    """

    config: RunConfig
    accelerator: Accelerator
    output_dir: Path
    tokenizer: PreTrainedTokenizerBase
    train: Dataset | IterableDataset
    dropped: DroppedPairs
    validation: Dataset | None
    test: Dataset | None
    order: TokenBatchSampler | StreamingTokenBatches
    batches: DataLoader
    validation_batches: DataLoader | None
    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    schedule: LambdaLR
    progress: Progress
    checkpoints: Checkpoints

    def bare_model(self) -> VanillaTransformerForConditionalGeneration:
        """The model itself, without what Accelerate has wrapped around it."""
        return self.accelerator.unwrap_model(self.model)

    def epochs(self) -> float:
        """Epochs so far; of a stream, whose length nobody knows, the finished ones."""
        if isinstance(self.order, StreamingTokenBatches):
            return float(self.progress.epoch)
        return self.progress.epoch + self.progress.batches / len(self.order)

    def sum_over_processes(self, here: torch.Tensor) -> torch.Tensor:
        """The sum of every process's tensor, on this process's device."""
        total = self.accelerator.reduce(here.to(self.accelerator.device), reduction="sum")
        assert isinstance(total, torch.Tensor)
        return total


def prepare_run(config: RunConfig) -> Run:
    """Everything before the first update, and the state of an earlier part of the same run.

    Raises:
        ValueError, FileNotFoundError, PermissionError: unusable data, configuration or folder.
    """
    data, optimizer_config = config.data, config.optimizer
    if data.train is None:
        raise ValueError("data.train is missing: give data.train.source and data.train.target, or data.train.path")
    with process_state().main_process_first():
        output_dir = claim_output_dir(config)
    accelerator = start_accelerator(config)
    with accelerator.main_process_first():
        text = load_corpus(data.train)
        tokenizer = prepare_tokenizer(config, text, output_dir)
        train, dropped = prepare_pairs(text, tokenizer, data.max_length)
        _log_dropped("train", dropped if isinstance(train, Dataset) else "a stream, counted while it is read")
        validation = None
        if data.validation is not None:
            validation, dropped_there = prepare_pairs(_whole(data.validation), tokenizer, data.max_length)
            _log_dropped("validation", dropped_there)
        test = _whole(data.test) if data.test is not None else None  # its errors come now, not after the training
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
    pairs = len(train) if isinstance(train, Dataset) else None
    progress = Progress(processes=accelerator.num_processes, pairs=pairs)
    accelerator.register_for_checkpointing(schedule, progress)
    order, batches = make_batches(train, config, tokenizer, accelerator, shuffle=True)
    validation_batches = None
    if validation is not None:
        _, validation_batches = make_batches(validation, config, tokenizer, accelerator, shuffle=False)
    run = Run(
        config=config,
        accelerator=accelerator,
        output_dir=output_dir,
        tokenizer=tokenizer,
        train=train,
        dropped=dropped,
        validation=validation,
        test=test,
        order=order,
        batches=batches,
        validation_batches=validation_batches,
        model=model,
        optimizer=optimizer,
        schedule=schedule,
        progress=progress,
        checkpoints=Checkpoints(accelerator, output_dir / CHECKPOINTS, config.training, tokenizer),
    )
    resumed_from = run.checkpoints.load_latest()
    if resumed_from is not None:
        _check_resumed(run, processes=accelerator.num_processes, pairs=pairs)
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
    accelerator = Accelerator(
        cpu=process_state().device == torch.device("cpu"),
        mixed_precision=precision,
        log_with=[*config.training.trackers] or None,
        project_config=ProjectConfiguration(project_dir=str(output_dir), logging_dir=str(output_dir / "logs")),
        step_scheduler_with_optimizer=False,
    )
    set_seed(config.training.seed)
    return accelerator


def bfloat16_is_faster(size: int = 256, repeats: int = 5) -> bool:
    """Whether a square matrix product takes less time in bfloat16 than in float32 on this device.

    A CPU without bfloat16 instructions computes it, a hundred times slower; no list of names tells it as surely.
    """
    device = process_state().device  # an Accelerator would fix its precision here
    assert device is not None
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
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
        if list_checkpoints(output_dir / CHECKPOINTS):
            if not config.training.resume:
                raise ValueError(
                    f"{output_dir} holds the checkpoints of a run, which training.resume=false would not go on from; "
                    "choose another training.output_dir, or remove that folder"
                )
            difference = _first_difference(_read_resolved(resolved), values)
            if difference:
                raise ValueError(
                    f"{output_dir} holds a run with another {difference}; "
                    "choose another training.output_dir, or remove that folder to start anew"
                )
        if process_state().is_main_process:
            unfinished = output_dir / ".config.yaml"
            unfinished.write_text(yaml.safe_dump(values, sort_keys=False, allow_unicode=True), encoding="utf-8")
            unfinished.replace(resolved)
    except OSError as error:
        raise PermissionError(
            f"training.output_dir={output_dir} cannot be written ({error.strerror}); choose another folder"
        ) from error
    return output_dir


def _read_resolved(path: Path) -> dict[str, Any]:
    try:
        return yaml.safe_load(path.read_text("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}, which tells what its run is, is damaged: {' '.join(str(error).split())}") from error


def _first_difference(before: dict[str, Any], now: dict[str, Any]) -> str | None:
    for section, values in now.items():
        old = before.get(section) or {}
        for key in sorted(set(old) | set(values)):
            if key not in MAY_CHANGE.get(section, ()) and old.get(key) != values.get(key):
                return f"{section}.{key} ({old.get(key)!r} there, {values.get(key)!r} now)"
    return None


def prepare_tokenizer(config: RunConfig, text: Dataset | IterableDataset, output_dir: Path) -> PreTrainedTokenizerBase:
    """The run's tokenizer: the one in its folder, else the configured one, else trained on both sides of `text`."""
    folder = output_dir / "tokenizer"
    # One of an attempt that came to no checkpoint may be of other data. The main process comes first and writes it.
    if list_checkpoints(output_dir / CHECKPOINTS) or not process_state().is_main_process:
        return load_tokenizer(folder)
    if config.tokenizer.path is not None:
        tokenizer = load_tokenizer(config.tokenizer.path)
        _check_tokenizer(config.tokenizer.path, tokenizer)
    else:
        tokenizer = train_tokenizer(_both_sides(text), config.tokenizer)
    with replaced_whole(folder) as unfinished:
        tokenizer.save_pretrained(unfinished)
    return tokenizer


def _check_tokenizer(path: str, tokenizer: PreTrainedTokenizerBase) -> None:
    for name in ("pad_token", "bos_token", "eos_token"):
        if getattr(tokenizer, name) is None:
            raise ValueError(f"tokenizer.path={path}: it has no {name}, which the model needs")
    if tokenizer("a")["input_ids"][-1:] != [tokenizer.eos_token_id]:
        raise ValueError(
            f"tokenizer.path={path}: it does not end a text with {tokenizer.eos_token}, where decoding ends"
        )


def _both_sides(text: Dataset | IterableDataset) -> Iterable[str]:
    for batch in text.iter(batch_size=1000):
        assert isinstance(batch, dict)
        yield from batch["source"]
        yield from batch["target"]


def _whole(corpus: CorpusConfig) -> Dataset:
    text = load_corpus(corpus)
    assert isinstance(text, Dataset)  # the configuration admits no stream but for training
    return text


def _log_dropped(name: str, dropped: DroppedPairs | str) -> None:
    if process_state().is_main_process:
        logger.info(f"data.{name}: {dropped}")


def _check_resumed(run: Run, processes: int, pairs: int | None) -> None:
    """What a process has seen of an epoch is a number of its batches, which must mean the same as before."""
    progress = run.progress
    if progress.processes != processes:
        raise ValueError(
            f"{run.output_dir} was trained by {progress.processes} processes, and now there are {processes}; use as "
            "many again, or choose another training.output_dir"
        )
    if progress.pairs != pairs:
        raise ValueError(
            f"{run.output_dir} was trained on {progress.pairs} pairs, and now data.train has {pairs}; give it the same "
            "corpus again, or choose another training.output_dir"
        )


def prepare_model(config: RunConfig, tokenizer: PreTrainedTokenizerBase) -> VanillaTransformerForConditionalGeneration:
    """A new model for the tokenizer's vocabulary, with the run's way of decoding as its generation config."""
    model_config = model_config_of(
        config,
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.bos_token_id,
    )
    try:
        model = VanillaTransformerForConditionalGeneration(model_config)
    except RuntimeError as error:  # of torch's allocator
        raise ValueError(
            f"there is no memory for the model with d_model={model_config.d_model}, d_ff={model_config.d_ff}, "
            f"num_layers={model_config.num_layers}; lower them in the section model ({' '.join(str(error).split())})"
        ) from error
    model.set_attn_implementation(config.training.attention)
    if config.training.gradient_checkpointing:
        model.activation_checkpointing_enable()
    generation = config.generation
    of_beams = {"length_penalty": generation.length_penalty, "early_stopping": True}  # refused beside greedy decoding
    model.generation_config = GenerationConfig(
        num_beams=generation.num_beams,
        **(of_beams if generation.num_beams > 1 else {}),
        max_tokens_beyond_source=generation.max_tokens_beyond_source,
        pad_token_id=model_config.pad_token_id,
        bos_token_id=model_config.bos_token_id,
        eos_token_id=model_config.eos_token_id,
        decoder_start_token_id=model_config.decoder_start_token_id,
    )
    return model


def make_batches(
    pairs: Dataset | IterableDataset,
    config: RunConfig,
    tokenizer: PreTrainedTokenizerBase,
    accelerator: Accelerator,
    shuffle: bool,
) -> tuple[TokenBatchSampler | StreamingTokenBatches, DataLoader]:
    """Batches by token budget, each process its own: their order, and their tensors."""
    settings, collate = config.training, DataCollatorForSeq2Seq(tokenizer)
    # A DataLoader draws a number whenever it is iterated over. From the common generator, a resumed run, which starts
    # in the middle of an epoch, would draw one more than the uninterrupted one.
    generator = torch.Generator()
    budgets = {"max_source_tokens": settings.max_source_tokens, "max_target_tokens": settings.max_target_tokens}
    if isinstance(pairs, IterableDataset):
        processes = accelerator.num_processes
        order = StreamingTokenBatches(pairs, **budgets, seed=settings.seed, num_processes=processes)
        return order, DataLoader(
            order,
            batch_size=None,  # what comes are batches already
            generator=generator,
            collate_fn=lambda rows: collate([{name: row[name] for name in MODEL_INPUTS} for row in rows]),
        )
    order = TokenBatchSampler(
        pairs["source_length"],
        pairs["target_length"],
        **budgets,
        seed=settings.seed,
        shuffle=shuffle,
        num_processes=accelerator.num_processes,
        process_index=accelerator.process_index,
    )
    rows: Any = pairs.select_columns(list(MODEL_INPUTS))  # a Dataset is what torch's class of that name describes
    return order, DataLoader(rows, batch_sampler=order, collate_fn=collate, generator=generator)
