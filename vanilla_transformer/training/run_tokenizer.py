# SPDX-License-Identifier: Apache-2.0
"""The tokenizer of a run, trained or brought along, which is stored in the run's folder and repaired if damaged."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from datasets import Dataset, IterableDataset
from datasets.fingerprint import Hasher
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from vanilla_transformer.data.cache import prepared_once
from vanilla_transformer.data.mixture import add_tags
from vanilla_transformer.data.tokenizer import TokenizerConfig, load_tokenizer, open_tokenizer, train_tokenizer
from vanilla_transformer.data.tokenizer_class import target_tokenizer, with_target
from vanilla_transformer.distributed.processes import process_state
from vanilla_transformer.language_tags import tag_id
from vanilla_transformer.training.atomic_folder import atomic_folder
from vanilla_transformer.training.checkpoint import CHECKPOINTS, list_checkpoints
from vanilla_transformer.training.manifest import find_damage

logger = logging.getLogger(__name__)

SIDES = ("source", "target")
LINES_BLOCK = 1000  # pairs that are read together, and drawn together where not all are


def prepare_tokenizer(
    config: TokenizerConfig,
    text: Dataset | IterableDataset,
    output_dir: Path,
    tags: Mapping[str, Sequence[str]] | None = None,
) -> PreTrainedTokenizerBase:
    """The tokenizer in the run's folder, else the configured one, else one trained on both sides of `text`.

    With `shared=False` there are two: that of the target is the `target_tokenizer` of the source's.

    Args:
        tags: the corpora's, by the column that they come first in, `input_ids` or `labels`. A trained tokenizer gets
            them, others must have them, or get them by `add_tokens`.

    Raises:
        ValueError: it is damaged everywhere, lacks what a model needs, or has a token that is to be added; as
            `add_tags`.
    """
    folder = output_dir / "tokenizer"
    if not process_state().is_main_process:  # the main one comes first
        return load_tokenizer(folder)
    # Without a checkpoint, a tokenizer there may be of an attempt on other data.
    if checkpoints := list_checkpoints(output_dir / CHECKPOINTS):
        _repair(folder, checkpoints)
        return load_tokenizer(folder)
    tokenizer = _open(config) if config.path is not None else _train_once(text, config)
    _add_tokens(tokenizer, config, tags or {})
    _write(tokenizer, folder)
    return tokenizer


def _open(config: TokenizerConfig) -> PreTrainedTokenizerFast:
    assert config.path is not None
    tokenizer, name = open_tokenizer(config.path), f"tokenizer.path={config.path}"
    if config.target_path is not None:
        if target_tokenizer(tokenizer) is not tokenizer:
            raise ValueError(f"{name}: it has a target's tokenizer already; leave out tokenizer.target_path")
        tokenizer = with_target(tokenizer, open_tokenizer(config.target_path))
        name += f" with {config.target_path}"
    target = target_tokenizer(tokenizer)
    if config.shared is not None and config.shared != (target is tokenizer):
        found = "one tokenizer; give tokenizer.target_path" if target is tokenizer else "one for each side"
        raise ValueError(f"{name} has {found}, or set tokenizer.shared={str(not config.shared).lower()}")
    _check(name, tokenizer, target)
    return tokenizer


def _add_tokens(tokenizer: PreTrainedTokenizerBase, config: TokenizerConfig, tags: Mapping[str, Sequence[str]]) -> None:
    """Add tags to the vocabulary of their side, and the other tokens of `add_tokens` to both, where texts give them."""
    sides: dict[Any, list[str]] = {}
    for column, side in (("input_ids", tokenizer), ("labels", target_tokenizer(tokenizer))):
        sides[side] = list(dict.fromkeys([*sides.get(side, ()), *tags.get(column, ())]))
    new = config.add_tokens or []
    others = [token for token in new if not any(token in tags_of_side for tags_of_side in sides.values())]
    for side, tags_of_side in sides.items():
        new_tags = [tag for tag in tags_of_side if tag in new]
        if known := [token for token in (*others, *new_tags) if token in side.get_vocab()]:
            raise ValueError(f"tokenizer.add_tokens={new}: the tokenizer has {known[0]!r} already; leave it out")
        try:
            add_tags(side, tags_of_side if config.path is None else new_tags)
            for tag in tags_of_side:
                tag_id(side, tag)
        except ValueError as error:
            raise ValueError(f"tokenizer.path={config.path}: {error}" if config.path else str(error)) from error
        if others:
            side.add_special_tokens({"extra_special_tokens": [*side.extra_special_tokens, *others]})


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


def _check(where: str, tokenizer: PreTrainedTokenizerBase, target: PreTrainedTokenizerBase) -> None:
    for name in ("pad_token", "bos_token", "eos_token"):
        if getattr(target, name) is None:
            raise ValueError(f"{where}: it has no {name}, which the model needs")
    if target("a")["input_ids"][-1:] != [target.eos_token_id]:
        raise ValueError(f"{where}: it does not end a text with {target.eos_token}, where decoding ends")
    if tokenizer.pad_token_id != target.pad_token_id:  # a model has one
        raise ValueError(
            f"{where}: padding is token {tokenizer.pad_token_id} of the source and {target.pad_token_id} of the "
            "target, and must be the same of both"
        )


def _train(text: Dataset | IterableDataset, config: TokenizerConfig) -> PreTrainedTokenizerFast:
    if config.shared:
        return train_tokenizer(_training_lines(text, config), config)
    source, target = (train_tokenizer(_training_lines(text, config, [side]), config) for side in SIDES)
    return with_target(source, target)


def _train_once(text: Dataset | IterableDataset, config: TokenizerConfig) -> PreTrainedTokenizerBase:
    """Train a tokenizer, or open the one that an earlier run has trained on the same corpus."""
    if isinstance(text, IterableDataset):
        return _train(text, config)
    name = f"tokenizer-{Hasher.hash([text._fingerprint, asdict(config), tokenizers.__version__])}"
    with prepared_once(name) as folder:
        if find_damage(folder) is None:
            return load_tokenizer(folder)
        tokenizer = _train(text, config)
        # A smaller one comes with a warning, and from a small corpus.
        if min(len(tokenizer), len(target_tokenizer(tokenizer))) >= config.vocab_size:
            _write(tokenizer, folder)
        return tokenizer


def _training_lines(
    text: Dataset | IterableDataset, config: TokenizerConfig, sides: Sequence[str] = SIDES
) -> Iterable[str]:
    """The sides of all pairs for symbols, else of at most `max_training_lines` / 2, drawn in blocks from the corpus.

    A stream's are its first pairs, once its files and a buffer are shuffled.
    """
    pairs = config.max_training_lines // 2
    if isinstance(text, IterableDataset):
        if config.kind != "symbols":
            text = text.shuffle(seed=0, buffer_size=LINES_BLOCK).take(pairs)
        blocks: Iterable[Any] = text.iter(batch_size=LINES_BLOCK)
    else:
        size = min(LINES_BLOCK, pairs)
        starts = np.arange(0, len(text), size)
        if config.kind != "symbols" and len(text) > pairs:
            starts = np.sort(np.random.default_rng(0).permutation(starts)[: pairs // size])
        blocks = (text[int(start) : int(start) + size] for start in starts)
    for block in blocks:
        for side in sides:
            yield from block[side]
