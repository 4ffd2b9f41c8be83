# SPDX-License-Identifier: Apache-2.0
"""The tokenizer of a run, trained or brought along, which is stored in the run's folder and repaired if damaged."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from datasets import Dataset, IterableDataset
from datasets.fingerprint import Hasher
from transformers import PreTrainedTokenizerBase

from vanilla_transformer.data.cache import prepared_once
from vanilla_transformer.data.mixture import add_tags
from vanilla_transformer.data.tokenizer import TokenizerConfig, load_tokenizer, train_tokenizer
from vanilla_transformer.distributed.processes import process_state
from vanilla_transformer.language_tags import tag_id
from vanilla_transformer.training.atomic_folder import atomic_folder
from vanilla_transformer.training.checkpoint import CHECKPOINTS, list_checkpoints
from vanilla_transformer.training.manifest import find_damage

logger = logging.getLogger(__name__)

LINES_BLOCK = 1000  # pairs that are read together, and drawn together where not all are


def prepare_tokenizer(
    config: TokenizerConfig, text: Dataset | IterableDataset, output_dir: Path, tags: Sequence[str] = ()
) -> PreTrainedTokenizerBase:
    """The tokenizer in the run's folder, else the configured one, else one trained on both sides of `text`.

    Args:
        tags: of the corpora; a trained tokenizer gets them, others must have them.

    Raises:
        ValueError: it is damaged everywhere, or lacks what a model needs; as `add_tags`.
    """
    folder = output_dir / "tokenizer"
    if not process_state().is_main_process:  # the main one comes first
        return load_tokenizer(folder)
    # Without a checkpoint, a tokenizer there may be of an attempt on other data.
    if checkpoints := list_checkpoints(output_dir / CHECKPOINTS):
        _repair(folder, checkpoints)
        return load_tokenizer(folder)
    if config.path is not None:
        tokenizer = load_tokenizer(config.path)
        _check(config.path, tokenizer, tags)
    else:
        tokenizer = _train_once(text, config)
        add_tags(tokenizer, tags)
    _write(tokenizer, folder)
    return tokenizer


def _write(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    with atomic_folder(folder, manifest=True) as unfinished:
        tokenizer.save_pretrained(unfinished)


def _repair(folder: Path, checkpoints: list[Path]) -> None:
    """Replace a damaged tokenizer by a checkpoint's: after a flipped bit it may still open, and give other tokens."""
    damage = find_damage(folder)
    if damage is None:
        return
    for checkpoint in reversed(checkpoints):
        if find_damage(checkpoint) is None:
            logger.warning(f"tokenizer {folder} is damaged and taken from {checkpoint}: {damage}")
            _write(load_tokenizer(checkpoint), folder)
            return
    raise ValueError(
        f"tokenizer {folder} is damaged ({damage}), and so is every checkpoint; choose another training.output_dir, or "
        "remove that folder to start anew"
    )


def _check(path: str, tokenizer: PreTrainedTokenizerBase, tags: Sequence[str]) -> None:
    for name in ("pad_token", "bos_token", "eos_token"):
        if getattr(tokenizer, name) is None:
            raise ValueError(f"tokenizer.path={path}: it has no {name}, which the model needs")
    if tokenizer("a")["input_ids"][-1:] != [tokenizer.eos_token_id]:
        raise ValueError(
            f"tokenizer.path={path}: it does not end a text with {tokenizer.eos_token}, where decoding ends"
        )
    for tag in tags:
        try:
            tag_id(tokenizer, tag)
        except ValueError as error:
            raise ValueError(f"tokenizer.path={path}: {error}") from error


def _train_once(text: Dataset | IterableDataset, config: TokenizerConfig) -> PreTrainedTokenizerBase:
    """Train a tokenizer, or open the one that an earlier run has trained on the same corpus."""
    if isinstance(text, IterableDataset):
        return train_tokenizer(_training_lines(text, config), config)
    name = f"tokenizer-{Hasher.hash([text._fingerprint, asdict(config), tokenizers.__version__])}"
    with prepared_once(name) as folder:
        if find_damage(folder) is None:
            return load_tokenizer(folder)
        tokenizer = train_tokenizer(_training_lines(text, config), config)
        if len(tokenizer) >= config.vocab_size:  # a smaller one comes with a warning, and from a small corpus
            _write(tokenizer, folder)
        return tokenizer


def _training_lines(text: Dataset | IterableDataset, config: TokenizerConfig) -> Iterable[str]:
    """Both sides of all pairs; for BPE of at most `max_training_lines` / 2, drawn in blocks from the whole corpus.

    A stream's are its first pairs, once its files and a buffer are shuffled.
    """
    pairs = config.max_training_lines // 2
    if isinstance(text, IterableDataset):
        if config.kind == "bpe":
            text = text.shuffle(seed=0, buffer_size=LINES_BLOCK).take(pairs)
        blocks: Iterable[Any] = text.iter(batch_size=LINES_BLOCK)
    else:
        size = min(LINES_BLOCK, pairs)
        starts = np.arange(0, len(text), size)
        if config.kind == "bpe" and len(text) > pairs:
            starts = np.sort(np.random.default_rng(0).permutation(starts)[: pairs // size])
        blocks = (text[int(start) : int(start) + size] for start in starts)
    for block in blocks:
        yield from block["source"]
        yield from block["target"]
