# SPDX-License-Identifier: Apache-2.0
"""The tokenizer of a run, trained or brought along, which is stored in the run's folder and repaired if damaged."""

import logging
from collections.abc import Iterable
from pathlib import Path

from datasets import Dataset, IterableDataset
from transformers import PreTrainedTokenizerBase

from vanilla_transformer.data.tokenizer import TokenizerConfig, load_tokenizer, train_tokenizer
from vanilla_transformer.distributed.processes import process_state
from vanilla_transformer.training.atomic_folder import atomic_folder
from vanilla_transformer.training.checkpoint import CHECKPOINTS, list_checkpoints
from vanilla_transformer.training.manifest import find_damage

logger = logging.getLogger(__name__)


def prepare_tokenizer(
    config: TokenizerConfig, text: Dataset | IterableDataset, output_dir: Path
) -> PreTrainedTokenizerBase:
    """The tokenizer in the run's folder, else the configured one, else one trained on both sides of `text`.

    Raises:
        ValueError: it is damaged everywhere, or lacks what a model needs.
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
        _check(config.path, tokenizer)
    else:
        tokenizer = train_tokenizer(_both_sides(text), config)
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


def _check(path: str, tokenizer: PreTrainedTokenizerBase) -> None:
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
