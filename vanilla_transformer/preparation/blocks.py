# SPDX-License-Identifier: Apache-2.0
"""The pass over the raw text: blocks of pairs are normalised and filtered by all cores, and kept as files.

A block is a file that is there whole or not at all, and depends on its pairs and the configuration alone: a preparation
that is killed goes on with the blocks that are missing.
"""

import os
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np

from vanilla_transformer.data.corpus import CorpusConfig, load_corpus, read_aligned, read_table
from vanilla_transformer.data.tables import Pairs
from vanilla_transformer.preparation.configuration import FilterConfig
from vanilla_transformer.preparation.duplicates import BANDS, signatures
from vanilla_transformer.preparation.filters import (
    REASONS,
    Filter,
    first_reason,
    normalise,
    pair_filters,
    pair_key,
    text_key,
)

PAIRS_PER_BLOCK = 20_000
KEPT = 0  # in the column `reason`; others are places in REASONS, from 1
PLACES = {name: place for place, name in enumerate(REASONS, start=1)}


@dataclass(frozen=True)
class Block:
    """A block of a corpus: `text` (source, target, reason, is_changed) as Arrow, `keys` of the kept pairs as .npy."""

    corpus: str
    text: Path

    @property
    def keys(self) -> Path:
        """`(kept pairs, 1 + BANDS)`, 64 bits each: the key of the pair, then its signature."""
        return self.text.with_suffix(".npy")


def read_pairs(config: CorpusConfig) -> Pairs:
    """The pairs of a raw corpus, without a copy on the disk; raises as `load_corpus` does."""
    if config.path is not None:
        return read_table(config.path, config.source_column, config.target_column)
    if config.dataset is not None:
        rows: Any = load_corpus(config)
        return iter(rows)
    assert isinstance(config.source, str)
    assert isinstance(config.target, str)  # PrepareConfig refuses a list
    return read_aligned(config.source, config.target)


def held_out_keys(corpora: Mapping[str, CorpusConfig], unicode_form: str | None) -> frozenset[bytes]:
    """`text_key` of each side of all pairs, each of several references included."""
    keys = set()
    for corpus in corpora.values():
        targets = corpus.target if isinstance(corpus.target, list) else [corpus.target]
        for target in targets:
            pairs = read_pairs(replace(corpus, target=target))
            keys.update(text_key(normalise(text, unicode_form)) for pair in pairs for text in pair.values())
    return frozenset(keys - {text_key("")})


def filter_blocks(
    corpora: Mapping[str, CorpusConfig],
    counts: Mapping[str, int],
    folder: Path,
    filters: FilterConfig,
    held_out: frozenset[bytes],
    processes: int | None,
    progress: Callable[[int], object],
) -> list[Block]:
    """Write the blocks that are missing in `folder`; returns all, in the order of the pairs.

    Args:
        counts: pairs of each corpus.
        progress: called with the number of pairs of each block, as it is there.
    """
    every, missing = [], deque()
    for number, (name, count) in enumerate(counts.items()):
        starts = range(0, count, PAIRS_PER_BLOCK)
        blocks = [Block(name, folder / f"{number:03}-{place:06}.arrow") for place in range(len(starts))]
        every += blocks
        absent = {place for place, block in enumerate(blocks) if not block.text.exists()}
        progress(sum(min(PAIRS_PER_BLOCK, count - start) for place, start in enumerate(starts) if place not in absent))
        if absent:
            missing.append((corpora[name], blocks, absent))
    processes = min(processes or _cores(), sum(len(absent) for *_, absent in missing))
    work = ((block, pairs) for corpus, blocks, absent in missing for block, pairs in _read(corpus, blocks, absent))
    if processes <= 1:
        tests = pair_filters(filters, held_out)
        for block, pairs in work:
            progress(_write_block(block, pairs, tests, filters.unicode_form))
        return every
    waiting: deque[Future[int]] = deque()
    with ProcessPoolExecutor(processes, get_context("spawn"), _start_worker, (filters, held_out)) as pool:
        for block, pairs in work:
            waiting.append(pool.submit(_write_block_in_worker, block, pairs))
            if len(waiting) >= 2 * processes:  # enough that no process waits, and little in memory
                progress(waiting.popleft().result())
        for future in waiting:
            progress(future.result())
    return every


def _read(corpus: CorpusConfig, blocks: list[Block], absent: set[int]) -> Iterator[tuple[Block, list[tuple[str, str]]]]:
    pairs = read_pairs(corpus)
    for place, block in enumerate(blocks):
        rows = islice(pairs, PAIRS_PER_BLOCK)
        if place in absent:
            yield block, [(row["source"], row["target"]) for row in rows]
        else:
            deque(rows, maxlen=0)  # read and forgotten


_worker: dict[str, Any] = {}  # this process's filters, if it is of the pool


def _start_worker(filters: FilterConfig, held_out: frozenset[bytes]) -> None:
    _worker["arguments"] = pair_filters(filters, held_out), filters.unicode_form
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A process of the pool would wait for ever if the command is killed."""
    parent = parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def _write_block_in_worker(block: Block, pairs: list[tuple[str, str]]) -> int:
    return _write_block(block, pairs, *_worker["arguments"])


def _write_block(block: Block, raw: list[tuple[str, str]], filters: dict[str, Filter], unicode_form: str | None) -> int:
    import pyarrow as pa

    pairs = [(normalise(source, unicode_form), normalise(target, unicode_form)) for source, target in raw]
    reasons = [first_reason(filters, *pair) for pair in pairs]
    kept = [pair for pair, reason in zip(pairs, reasons, strict=True) if reason is None]
    keys = np.empty((len(kept), 1 + BANDS), np.uint64)
    keys[:, 0] = np.frombuffer(b"".join(pair_key(*pair) for pair in kept), np.uint64)
    keys[:, 1:] = signatures(kept)
    columns = {
        "source": pa.array([source for source, _ in pairs], pa.string()),
        "target": pa.array([target for _, target in pairs], pa.string()),
        "reason": pa.array([KEPT if reason is None else PLACES[reason] for reason in reasons], pa.int8()),
        "is_changed": pa.array([pair != before for pair, before in zip(pairs, raw, strict=True)]),
    }
    table = pa.table(columns)
    # A worker of a killed command may write the same block at the same time.
    unfinished = block.text.with_suffix(f".{os.getpid()}")
    with unfinished.open("wb") as file:
        np.save(file, keys)
    unfinished.replace(block.keys)
    with pa.OSFile(str(unfinished), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    unfinished.replace(block.text)  # last: a block is there if its text is
    return len(pairs)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
