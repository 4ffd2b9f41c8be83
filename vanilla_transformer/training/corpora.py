# SPDX-License-Identifier: Apache-2.0
"""A run's text as tokens: the tokenizer, the corpora, and the batches made of them."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from datasets import Dataset, IterableDataset
from torch.utils.data import DataLoader
from transformers import DataCollatorForSeq2Seq, PreTrainedTokenizerBase

from vanilla_transformer.data.batches import StreamingTokenBatches, TokenBatchSampler
from vanilla_transformer.data.corpus import (
    CorpusConfig,
    DroppedPairs,
    fingerprint,
    load_corpus,
    load_references,
    prepare_pairs,
)
from vanilla_transformer.data.tokenizer import load_tokenizer, train_tokenizer
from vanilla_transformer.distributed.processes import process_state
from vanilla_transformer.training.checkpoint import CHECKPOINTS, list_checkpoints, replaced_whole
from vanilla_transformer.training.configuration import RunConfig
from vanilla_transformer.training.manifest import find_damage, write_manifest

logger = logging.getLogger(__name__)

MODEL_INPUTS = ("input_ids", "labels")


@dataclass(frozen=True)
class Corpora:
    """The run's corpora; `validation` and `test` are `None` if there are none.

    `train` and `validation` have text and tokens; `test` has the sources, and a list of references for each. `dropped`
    counts what was left out of `train`. `fingerprint` tells whether `train` is the same another time, and
    `validation_fingerprint` whether `validation` is.
    """

    train: Dataset | IterableDataset
    dropped: DroppedPairs
    validation: Dataset | None
    test: tuple[list[str], list[list[str]]] | None
    fingerprint: dict[str, str]
    validation_fingerprint: dict[str, str]

    def pairs(self) -> int | None:
        """To train on; `None` for a stream, whose length nobody knows."""
        return len(self.train) if isinstance(self.train, Dataset) else None


def prepare_corpora(config: RunConfig, output_dir: Path) -> tuple[PreTrainedTokenizerBase, Corpora]:
    """Tokenizer and corpora; what was dropped is logged.

    Raises:
        ValueError, FileNotFoundError: a corpus that cannot be read, or of which nothing is left.
    """
    data = config.data
    assert data.train is not None  # looked at before the run's folder was made
    text = load_corpus(data.train)
    test = load_references(data.test) if data.test is not None else None  # its errors come now, not after the training
    tokenizer = prepare_tokenizer(config, text, output_dir)
    train, dropped = prepare_pairs(text, tokenizer, data.max_length)
    _log_dropped("train", dropped if isinstance(train, Dataset) else "a stream, counted while it is read")
    validation, validation_fingerprint = None, {}
    if data.validation is not None:
        validation_fingerprint = fingerprint(data.validation)
        validation, dropped_there = prepare_pairs(_whole(data.validation), tokenizer, data.max_length)
        _log_dropped("validation", dropped_there)
    return tokenizer, Corpora(train, dropped, validation, test, fingerprint(data.train), validation_fingerprint)


def prepare_tokenizer(config: RunConfig, text: Dataset | IterableDataset, output_dir: Path) -> PreTrainedTokenizerBase:
    """The run's tokenizer: the one in its folder, else the configured one, else trained on both sides of `text`."""
    folder = output_dir / "tokenizer"
    if not process_state().is_main_process:  # the main one comes first
        return load_tokenizer(folder)
    # One of an attempt that came to no checkpoint may be of other data.
    if checkpoints := list_checkpoints(output_dir / CHECKPOINTS):
        _mend_tokenizer(folder, checkpoints)
        return load_tokenizer(folder)
    if config.tokenizer.path is not None:
        tokenizer = load_tokenizer(config.tokenizer.path)
        _check_tokenizer(config.tokenizer.path, tokenizer)
    else:
        tokenizer = train_tokenizer(_both_sides(text), config.tokenizer)
    _write_tokenizer(tokenizer, folder)
    return tokenizer


def _write_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    with replaced_whole(folder) as unfinished:
        tokenizer.save_pretrained(unfinished)
        write_manifest(unfinished)


def _mend_tokenizer(folder: Path, checkpoints: list[Path]) -> None:
    """A turned bit may leave a tokenizer that opens and gives other tokens; every checkpoint has it too."""
    damage = find_damage(folder)
    if damage is None:
        return
    for checkpoint in reversed(checkpoints):
        if find_damage(checkpoint) is None:
            logger.warning(f"tokenizer {folder} is damaged and taken from {checkpoint}: {damage}")
            _write_tokenizer(load_tokenizer(checkpoint), folder)
            return
    raise ValueError(
        f"tokenizer {folder} is damaged ({damage}), and so is every checkpoint; choose another training.output_dir, or "
        "remove that folder to start anew"
    )


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


def check_same_text(output_dir: Path, used: str, before: dict[str, str], now: dict[str, str], harm: str) -> None:
    """The contents of a corpus decide, in their order; another path to them is the same corpus.

    Args:
        used: a past participle for the message, such as "trained".
        before, now: as `fingerprint` tells them.
        harm: the consequence of another text, for the message.

    Raises:
        ValueError: the contents differ; names the file.
    """
    if list(dict.fromkeys(before.values())) == list(dict.fromkeys(now.values())):
        return
    remedy = "bring it back as it was, or choose another training.output_dir"
    if set(before.values()) == set(now.values()):
        both = " and ".join(now)
        raise ValueError(f"{both} have changed places since {output_dir} was {used} on them, and {harm}; {remedy}")
    name = next((name for name in now if now[name] not in before.values()), next(iter(now)))
    then = before.get(name) or " and ".join(before.values())
    raise ValueError(
        f"{name} has changed since {output_dir} was {used} on it (then {then}, now {now[name]}), and {harm}; {remedy}"
    )


def _log_dropped(name: str, dropped: DroppedPairs | str) -> None:
    if process_state().is_main_process:
        logger.info(f"data.{name}: {dropped}")


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
    place = {"num_processes": accelerator.num_processes, "process_index": accelerator.process_index}
    if isinstance(pairs, IterableDataset):
        order = StreamingTokenBatches(pairs, **budgets, **place, seed=settings.seed)
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
        **place,
        seed=settings.seed,
        shuffle=shuffle,
    )
    rows: Any = pairs.select_columns(list(MODEL_INPUTS))  # a Dataset is what torch's class of that name describes
    return order, DataLoader(rows, batch_sampler=order, collate_fn=collate, generator=generator)
