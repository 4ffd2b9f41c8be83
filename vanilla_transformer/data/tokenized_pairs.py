# SPDX-License-Identifier: Apache-2.0
"""Pairs as tokens: tokenised once by all cores into memory-mapped files, or while a stream is read."""

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from vanilla_transformer.console.outputs import write_atomically
from vanilla_transformer.data.alignment import NO_WORD, parse_alignment, token_links, tokenize_words
from vanilla_transformer.data.cache import prepared_once, unfinished
from vanilla_transformer.data.corpus import ROWS_PER_BLOCK

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset, IterableDataset
    from transformers import PreTrainedTokenizerBase

    Corpus = TypeVar("Corpus", Dataset, IterableDataset)

PAIRS_PER_PROCESS = 50_000  # with fewer, starting another process takes longer than it spares
ALIGNMENTS, LINKS = "alignments", "links"  # columns: of words as text, of tokens
# Entries of tokenizer_config.json that name the place a tokenizer was opened from.
ORIGIN = ("is_local", "local_files_only", "name_or_path")


@dataclass
class DroppedPairs:
    """Numbers of pairs that `prepare_pairs` kept and dropped; of a stream, they grow whenever it is read."""

    kept: int = 0
    empty: int = 0
    too_long: int = 0
    max_length: int = 0

    def __str__(self) -> str:
        return (
            f"{self.kept:,} pairs kept, {self.empty:,} with an empty side dropped, "
            f"{self.too_long:,} with more than {self.max_length} tokens on a side dropped"
        )

    def count(self, outcome: str) -> bool:
        """Count one pair; returns whether it is kept."""
        setattr(self, outcome, getattr(self, outcome) + 1)
        return outcome == "kept"


def prepare_pairs(
    corpus: "Corpus",
    tokenizer: "PreTrainedTokenizerBase",
    max_length: int,
    with_text: bool = False,
    first_tokens: Mapping[str, int] | None = None,
) -> "tuple[Corpus, DroppedPairs]":
    """Tokenise both sides, and drop pairs of which a side is empty or has more than `max_length` tokens.

    A corpus that is not a stream is tokenised once for all processes of a node, and for every run with an equal
    tokenizer: the cache's key is what the corpus, the tokenizer and the readers are, not where they lie.

    Args:
        corpus: columns `source` and `target`, perhaps `alignments` in Pharaoh's format.
        max_length: of a side, in tokens, with the end of the sentence.
        with_text: keep the columns `source` and `target`; not for a stream.
        first_tokens: tags that `input_ids` or `labels` of all pairs begin with.

    Returns:
        The pairs with columns `input_ids`, `labels` (16 bits a token if the vocabulary allows it), `source_length`,
        `target_length`, and with alignments `links`: a source and a target token of each link, one after another; and
        the counts of kept and dropped pairs.

    Raises:
        ValueError: no pair is left.
    """
    import pyarrow as pa
    import tokenizers
    from datasets import Dataset, Features
    from datasets.fingerprint import Hasher

    options: dict[str, Any] = {"tokenizer": tokenizer, "max_length": max_length}
    options |= {"first_tokens": dict(first_tokens)} if first_tokens else {}
    if not isinstance(corpus, Dataset):
        dropped = DroppedPairs(max_length=max_length)
        rows = corpus.map(_tokenize, batched=True, fn_kwargs=options, remove_columns=["source", "target"])
        return rows.filter(dropped.count, input_columns="outcome").remove_columns("outcome"), dropped
    vocab_size = max(len(tokenizer), len(getattr(tokenizer, "target_tokenizer", None) or ()))
    token, length = (_smallest_integer(largest) for largest in (vocab_size - 1, max_length))
    columns = {
        "input_ids": pa.list_(token),
        "labels": pa.list_(token),
        "source_length": length,
        "target_length": length,
    }
    if ALIGNMENTS in corpus.column_names:
        columns[LINKS] = pa.list_(length)
    text = {"source": pa.string(), "target": pa.string()} if with_text else {}
    schema = pa.schema(text | columns)
    content = [corpus._fingerprint, _tokenizer_content(tokenizer), tokenizers.__version__, max_length, with_text]
    content += [dict(first_tokens)] if first_tokens else []
    key = Hasher.hash(content)
    with prepared_once(f"pairs-{key}.arrow") as path:
        pairs = corpus.map(
            _tokenize_kept,
            batched=True,
            batch_size=ROWS_PER_BLOCK,
            fn_kwargs=options | {"schema": schema},
            remove_columns=corpus.column_names,
            features=Features.from_arrow_schema(schema),
            num_proc=_processes(len(corpus)),
            cache_file_name=str(path),
            new_fingerprint=key,
        )
        counts = path.with_suffix(".json")
        if not counts.exists():
            empty = 0 if len(pairs) == len(corpus) else _count_empty(corpus)
            dropped = DroppedPairs(len(pairs), empty, len(corpus) - len(pairs) - empty, max_length)
            write_atomically(counts, json.dumps(asdict(dropped)))
        dropped = DroppedPairs(**json.loads(counts.read_text("utf-8")))
    if not dropped.kept:
        raise ValueError(f"no pair is left to train on: {dropped}")
    return pairs, dropped


def read_lengths(pairs: "Dataset") -> np.ndarray:
    """`(2, pairs)`: source and target tokens of each of the pairs of `prepare_pairs`, memory-mapped."""
    with prepared_once(f"lengths-{pairs._fingerprint}.npy") as path:
        if not path.exists():
            with unfinished(path) as partial:
                dtype, shape = pairs.features["source_length"].dtype, (2, len(pairs))
                lengths = np.lib.format.open_memmap(partial, mode="w+", dtype=dtype, shape=shape)
                for row, side in enumerate(("source", "target")):
                    start = 0
                    for chunk in pairs.data.column(f"{side}_length").chunks:
                        lengths[row, start : start + len(chunk)] = chunk.to_numpy()
                        start += len(chunk)
                lengths.flush()
    return np.load(path, mmap_mode="r")


def _tokenize(
    batch: dict[str, list[str]],
    tokenizer: "PreTrainedTokenizerBase",
    max_length: int,
    first_tokens: Mapping[str, int] = MappingProxyType({}),
) -> dict[str, list]:
    encoded: Any = tokenizer(batch["source"], text_target=batch["target"], return_attention_mask=False, verbose=False)
    for side, token in first_tokens.items():
        encoded[side] = [[token, *ids] for ids in encoded[side]]
    input_ids, labels = encoded["input_ids"], encoded["labels"]
    links = {LINKS: _links(batch, tokenizer, first_tokens)} if ALIGNMENTS in batch else {}
    outcomes = []
    for source, target, source_ids, target_ids in zip(batch["source"], batch["target"], input_ids, labels, strict=True):
        if not source.strip() or not target.strip():
            outcomes.append("empty")
        else:
            outcomes.append("too_long" if max(len(source_ids), len(target_ids)) > max_length else "kept")
    return {
        "input_ids": input_ids,
        "labels": labels,
        "source_length": list(map(len, input_ids)),
        "target_length": list(map(len, labels)),
        "outcome": outcomes,
        **links,
    }


def _links(batch: dict[str, list[str]], tokenizer: Any, first_tokens: Mapping[str, int]) -> list[list[int]]:
    """`LINKS` of each pair."""
    sides = (("source", "input_ids", False), ("target", "labels", True))
    words = [
        [[NO_WORD] * (ids in first_tokens) + own for own in tokenize_words(tokenizer, batch[side], is_target)[1]]
        for side, ids, is_target in sides
    ]
    texts = zip(batch[ALIGNMENTS], batch["source"], batch["target"], strict=True)
    alignments = (parse_alignment(*text) for text in texts)
    return [[token for link in token_links(*own) for token in link] for own in zip(alignments, *words, strict=True)]


def _tokenize_kept(batch: Any, schema: "pa.Schema", **options: Any) -> "pa.Table":
    import pyarrow as pa

    rows = dict(batch) | _tokenize(batch, **options)
    kept = [i for i, outcome in enumerate(rows["outcome"]) if outcome == "kept"]
    return pa.table({name: [rows[name][i] for i in kept] for name in schema.names}, schema=schema)


def _count_empty(corpus: "Dataset") -> int:
    import pyarrow.compute

    compute: Any = pyarrow.compute  # its functions are made when it is imported
    empty = 0
    for block in corpus.data.to_batches():  # on the disk; strings of the whole corpus would not fit in memory
        sides = (compute.utf8_trim_whitespace(block.column(side)) for side in ("source", "target"))
        empty += compute.sum(compute.or_(*(compute.equal(side, "") for side in sides))).as_py() or 0
    return empty


def _smallest_integer(largest: int) -> "pa.DataType":
    import pyarrow as pa

    return pa.uint16() if largest < 2**16 else pa.uint32()


def _processes(pairs: int) -> int | None:
    """Cores that this process may use, as far as they are worth it; `None`: this process alone."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    processes = min(cores, pairs // PAIRS_PER_PROCESS)
    return processes if processes > 1 else None


def _tokenizer_content(tokenizer: "PreTrainedTokenizerBase") -> dict[str, Any]:
    """What decides on the tokens: the tokenizer's files, equal for one that was trained now and one that was opened."""
    with TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        files = [path for path in sorted(Path(folder).rglob("*")) if path.is_file()]  # the target's are in a folder
        content: dict[str, Any] = {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
    for file in [file for file in content if file.endswith("tokenizer_config.json")]:
        config = json.loads(content[file])
        content[file] = {name: config[name] for name in sorted(config) if name not in ORIGIN}
    return content
