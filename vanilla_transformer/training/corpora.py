# SPDX-License-Identifier: Apache-2.0
"""A run's corpora as tokens, and the batches of them."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from datasets import Dataset, IterableDataset, concatenate_datasets, interleave_datasets
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase

from vanilla_transformer.data.batches import PAIRS_PER_SHARD, StreamingTokenBatches, TokenBatchSampler
from vanilla_transformer.data.corpus import CorpusConfig, fingerprint, load_corpus
from vanilla_transformer.data.mixture import (
    DroppedByCorpus,
    InterleavedStreams,
    MixedCorpusConfig,
    Mixture,
    NamedCorpusConfig,
    by_name,
    by_place,
    pairs_per_epoch,
    tags_of,
)
from vanilla_transformer.data.tokenized_pairs import DroppedPairs, prepare_pairs, read_lengths
from vanilla_transformer.data.tokenizer_class import target_tokenizer
from vanilla_transformer.distributed.processes import process_state
from vanilla_transformer.language_tags import tag_id
from vanilla_transformer.training.batch import PreparedAhead, collate
from vanilla_transformer.training.configuration import CorporaConfig, TrainingConfig
from vanilla_transformer.training.train_state import Progress

logger = logging.getLogger(__name__)

MODEL_INPUTS = ("input_ids", "labels")
Text = Dataset | IterableDataset
Tests = dict[str, tuple[list[str], list[list[str]]]]  # name → sources, and the references of each
# Beside the training corpus' fingerprints, where older versions made other batches of the same pairs.
ORDER = "order of the batches"


@dataclass(frozen=True)
class ValidationCorpus:
    """Pairs as tokens and text; options of `translate_lines` for their tags."""

    pairs: Dataset
    options: dict[str, Any]


@dataclass(frozen=True)
class TestCorpus:
    """Sources and the references of each; options of `translate_lines` for their tags."""

    sources: list[str]
    references: list[list[str]]
    options: dict[str, Any]


@dataclass(frozen=True)
class Corpora:
    """The run's corpora; `validation` and `test` may be empty.

    Args:
        train: tokens, of several corpora one after another, or as interleaved streams.
        dropped: what was left out of `train`.
        validation, test: by name; one that is no list is "validation" or "test".
        fingerprint, validation_fingerprint: tell whether `train` and `validation` are the same another time.
        mixture: the pairs of each epoch; `None`: all.
    """

    train: Dataset | IterableDataset | InterleavedStreams
    dropped: DroppedPairs | DroppedByCorpus
    validation: dict[str, ValidationCorpus]
    test: dict[str, TestCorpus]
    fingerprint: dict[str, str]
    validation_fingerprint: dict[str, str]
    mixture: Mixture | None = None

    def pairs(self) -> int | None:
        """Training pairs; `None` for a stream, whose length nobody knows."""
        return len(self.train) if isinstance(self.train, Dataset) else None


def load_texts(train: CorpusConfig | list[MixedCorpusConfig]) -> dict[str, Text]:
    """The text of each training corpus, by its place in the configuration; raises as `load_corpus` does."""
    return {place: load_corpus(corpus) for place, corpus in by_place("data.train", train).items()}


def joined_text(texts: dict[str, Text]) -> Text:
    """All texts for the training of a tokenizer: one after another, and of streams a pair of each in turn."""
    corpora: Any = list(texts.values())
    if len(corpora) == 1:
        return corpora[0]
    if isinstance(corpora[0], Dataset):
        return concatenate_datasets(corpora)
    return interleave_datasets(corpora, stopping_strategy="all_exhausted_without_replacement")


def all_tags(config: CorporaConfig) -> dict[str, list[str]]:
    """The tags of the training corpora, each once, by the column of tokens that they come first in."""
    tags = [tags_of(corpus) for corpus in by_place("data.train", config.train).values()]
    return {column: list(dict.fromkeys(each[column] for each in tags if column in each)) for column in MODEL_INPUTS}


def target_tags_of(config: CorporaConfig, tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """The tags that targets of the training corpora begin with, and their ids."""
    return {tag: tag_id(target_tokenizer(tokenizer), tag) for tag in all_tags(config)["labels"]}


def prepare_corpora(
    config: CorporaConfig, texts: dict[str, Text], tokenizer: PreTrainedTokenizerBase, seed: int, tests: Tests
) -> Corpora:
    """Tokenise the training corpora `texts` and the validation corpora; log the dropped pairs.

    Args:
        seed: of the order in which a mixture shows its pairs.

    Raises:
        ValueError, FileNotFoundError: a corpus that cannot be read, or that has no pair left; a tag that the tokenizer
            lacks.
    """
    train: dict[str, Any] = {}
    dropped, places, options = {}, by_place("data.train", config.train), (tokenizer, config.max_length)
    for place, text in texts.items():
        tags = _tag_ids(places[place], tokenizer)
        train[place], dropped[place] = prepare_pairs(text, *options, first_tokens=tags)  # pyright: ignore[reportArgumentType] -- it takes either
        _log(f"{place}: {dropped[place] if isinstance(text, Dataset) else 'a stream, counted while it is read'}")
    validation = {}
    for name, corpus in by_name("validation", config.validation).items():
        text: Any = load_corpus(corpus)  # no stream, which the configuration refuses
        tags = _tag_ids(corpus, tokenizer)
        pairs, left_out = prepare_pairs(text, *options, with_text=True, first_tokens=tags)
        validation[name] = ValidationCorpus(pairs, _options(corpus, tokenizer))
        _log(f"{'data.validation' if name == 'validation' else f'data.validation[{name}]'}: {left_out}")
    test = {
        name: TestCorpus(*tests[name], _options(corpus, tokenizer))
        for name, corpus in by_name("test", getattr(config, "test", None)).items()
    }
    is_list = isinstance(config.train, list)
    mixed, mixture = _mix(config, train, seed) if is_list else (train["data.train"], None)
    train_fingerprint = _fingerprints("data.train", config.train)
    pool = f"shards of {PAIRS_PER_SHARD:,}" if isinstance(mixed, Dataset) else "pools of 100,000"
    train_fingerprint[ORDER] = f"by the longer side, in {pool} pairs"
    return Corpora(
        train=mixed,
        dropped=DroppedByCorpus(dropped) if is_list else dropped["data.train"],
        validation=validation,
        test=test,
        fingerprint=train_fingerprint,
        validation_fingerprint=_fingerprints("data.validation", config.validation),
        mixture=mixture,
    )


def _tag_ids(corpus: CorpusConfig, tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    sides = {"input_ids": tokenizer, "labels": target_tokenizer(tokenizer)}
    return {column: tag_id(sides[column], tag) for column, tag in tags_of(corpus).items()}


def _options(corpus: CorpusConfig, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The options of `translate_lines` for the tags of a corpus."""
    tags = tags_of(corpus)
    source = {"tag": tags["input_ids"]} if "input_ids" in tags else {}
    return source | ({"forced_bos_token_id": _tag_ids(corpus, tokenizer)["labels"]} if "labels" in tags else {})


def _mix(
    config: CorporaConfig, train: dict[str, Any], seed: int
) -> tuple[Dataset | InterleavedStreams, Mixture | None]:
    assert isinstance(config.train, list)
    weights = [corpus.weight for corpus in config.train]
    if config.train[0].streaming:
        streams = InterleavedStreams(train, [weight for weight in weights if weight is not None])
        _log(f"data.train: {streams}")
        return streams, None
    sizes = {place: len(pairs) for place, pairs in train.items()}
    mixture = Mixture(sizes, pairs_per_epoch(sizes, weights, config.temperature), seed)
    _log(f"data.train: {mixture}")
    return concatenate_datasets(list(train.values())), mixture


def _fingerprints(place: str, corpora: CorpusConfig | Sequence[NamedCorpusConfig] | None) -> dict[str, str]:
    """The `fingerprint` of one corpus, or one entry for each corpus of a list, by its place."""
    if isinstance(corpora, CorpusConfig):
        return fingerprint(corpora)
    return {name: ", ".join(fingerprint(corpus).values()) for name, corpus in by_place(place, corpora).items()}


def _log(line: str) -> None:
    if process_state().is_main_process:
        logger.info(line)


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
    pairs: Dataset | IterableDataset | InterleavedStreams,
    training: TrainingConfig,
    tokenizer: PreTrainedTokenizerBase,
    accelerator: Accelerator,
    shuffle: bool = True,
    mixture: Mixture | None = None,
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
    if not isinstance(pairs, Dataset):
        sampler = StreamingTokenBatches(pairs, **options)
        return sampler, PreparedAhead(DataLoader(sampler, batch_size=None, **loading))  # the stream's items are batches
    sampler = TokenBatchSampler(*read_lengths(pairs), shuffle=shuffle, mixture=mixture, **options)
    rows: Any = pairs.select_columns(list(MODEL_INPUTS))  # torch's Dataset is a protocol that it follows
    return sampler, PreparedAhead(DataLoader(rows, batch_sampler=sampler, **loading))
