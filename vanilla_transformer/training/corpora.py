# SPDX-License-Identifier: Apache-2.0
"""A run's corpora as tokens, and the batches of them."""

import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from datasets import Dataset, IterableDataset
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase

from vanilla_transformer.data.batches import PAIRS_PER_SHARD, StreamingTokenBatches, TokenBatchSampler
from vanilla_transformer.data.corpus import fingerprint, load_corpus
from vanilla_transformer.data.tokenized_pairs import DroppedPairs, prepare_pairs, read_lengths
from vanilla_transformer.distributed.processes import process_state
from vanilla_transformer.training.batch import PreparedAhead, collate
from vanilla_transformer.training.configuration import CorporaConfig, TrainingConfig
from vanilla_transformer.training.train_state import Progress

logger = logging.getLogger(__name__)

MODEL_INPUTS = ("input_ids", "labels")
Test = tuple[list[str], list[list[str]]]  # sources, and the references of each
# Beside the training corpus' fingerprints, where older versions made other batches of the same pairs.
ORDER = "order of the batches"


@dataclass(frozen=True)
class Corpora:
    """The run's corpora; `validation` and `test` may be `None`.

    Args:
        train, validation: tokens; `validation` has its text too.
        dropped: what was left out of `train`.
        fingerprint, validation_fingerprint: tell whether `train` and `validation` are the same another time.
    """

    train: Dataset | IterableDataset
    dropped: DroppedPairs
    validation: Dataset | None
    test: Test | None
    fingerprint: dict[str, str]
    validation_fingerprint: dict[str, str]

    def pairs(self) -> int | None:
        """Training pairs; `None` for a stream, whose length nobody knows."""
        return len(self.train) if isinstance(self.train, Dataset) else None


def prepare_corpora(
    config: CorporaConfig, text: Dataset | IterableDataset, tokenizer: PreTrainedTokenizerBase, test: Test | None = None
) -> Corpora:
    """Tokenise the training corpus `text` and the validation corpus; log the dropped pairs.

    Raises:
        ValueError, FileNotFoundError: a corpus that cannot be read, or that has no pair left.
    """
    assert config.train is not None  # checked before the run's folder was made
    train, dropped = prepare_pairs(text, tokenizer, config.max_length)  # pyright: ignore[reportArgumentType] -- it takes either
    _log_dropped("train", dropped if isinstance(train, Dataset) else "a stream, counted while it is read")
    validation, validation_fingerprint = None, {}
    if config.validation is not None:
        validation_fingerprint = fingerprint(config.validation)
        validation_text = load_corpus(config.validation)
        assert isinstance(validation_text, Dataset)  # the configuration refuses a stream
        validation, validation_dropped = prepare_pairs(validation_text, tokenizer, config.max_length, with_text=True)
        _log_dropped("validation", validation_dropped)
    train_fingerprint = fingerprint(config.train)
    pool = f"shards of {PAIRS_PER_SHARD:,}" if isinstance(train, Dataset) else "pools of 100,000"
    train_fingerprint[ORDER] = f"by the longer side, in {pool} pairs"
    return Corpora(train, dropped, validation, test, train_fingerprint, validation_fingerprint)


def _log_dropped(name: str, dropped: DroppedPairs | str) -> None:
    if process_state().is_main_process:
        logger.info(f"data.{name}: {dropped}")


def check_same_corpora(progress: Progress, corpora: Corpora, output_dir: Path) -> None:
    """Raise ValueError unless the corpora have the same contents, in the same order, as when `progress` was saved.

    The rest of an epoch is known by counting, and scores are to be compared. Paths do not matter.
    """
    if ORDER not in progress.corpus:
        raise ValueError(
            f"{output_dir} was begun by an older version, which made other batches of the same pairs; finish it with "
            "that version, or choose another training.output_dir"
        )
    rest, scores = "the rest of the epoch is not known", "scores cannot be compared with those before"
    _check_same_text(output_dir, "trained", progress.corpus, corpora.fingerprint, rest)
    _check_same_text(output_dir, "validated", progress.validation_corpus, corpora.validation_fingerprint, scores)
    if progress.pairs != corpora.pairs():
        raise ValueError(
            f"{output_dir} was trained on {progress.pairs} pairs, and now data.train has {corpora.pairs()}; give it "
            "the same corpus again, or choose another training.output_dir"
        )


def _check_same_text(output_dir: Path, verb: str, before: dict[str, str], now: dict[str, str], harm: str) -> None:
    if list(dict.fromkeys(before.values())) == list(dict.fromkeys(now.values())):
        return
    remedy = "bring it back as it was, or choose another training.output_dir"
    if set(before.values()) == set(now.values()):
        both = " and ".join(now)
        raise ValueError(f"{both} have changed places since {output_dir} was {verb} on them, and {harm}; {remedy}")
    name = next((name for name in now if now[name] not in before.values()), next(iter(now)))
    then = before.get(name) or " and ".join(before.values())
    raise ValueError(
        f"{name} has changed since {output_dir} was {verb} on it (then {then}, now {now[name]}), and {harm}; {remedy}"
    )


def make_batches(
    pairs: Dataset | IterableDataset,
    training: TrainingConfig,
    tokenizer: PreTrainedTokenizerBase,
    accelerator: Accelerator,
    shuffle: bool = True,
) -> tuple[TokenBatchSampler | StreamingTokenBatches, PreparedAhead]:
    """This process's batch sampler (by token budget), and its batches, which a thread prepares and pins."""
    # A DataLoader draws a number whenever it is iterated over. From the common generator, a resumed run, which starts
    # in the middle of an epoch, would draw one more than the uninterrupted one.
    loading: dict[str, Any] = {
        "collate_fn": partial(collate, tokenizer=tokenizer),
        "generator": torch.Generator(),
        "pin_memory": accelerator.device.type == "cuda",
    }
    options: dict[str, Any] = {
        "max_source_tokens": training.max_source_tokens,
        "max_target_tokens": training.max_target_tokens,
        "num_processes": accelerator.num_processes,
        "process_index": accelerator.process_index,
        "seed": training.seed,
    }
    if isinstance(pairs, IterableDataset):
        sampler = StreamingTokenBatches(pairs, **options)
        return sampler, PreparedAhead(DataLoader(sampler, batch_size=None, **loading))  # the stream's items are batches
    sampler = TokenBatchSampler(*read_lengths(pairs), shuffle=shuffle, **options)
    rows: Any = pairs.select_columns(list(MODEL_INPUTS))  # torch's Dataset is a protocol that it follows
    return sampler, PreparedAhead(DataLoader(rows, batch_sampler=sampler, **loading))
