# SPDX-License-Identifier: Apache-2.0
"""Corpora of parallel text, through `datasets`: text files, tables, json lines, parquet, the Hub."""

import gzip
import hashlib
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from huggingface_hub.dataclasses import strict

from vanilla_transformer.data.tables import (
    NESTED,
    has_nested_columns,
    parse_csv,
    parse_json,
    parse_tsv,
    read_parquet,
    select_pair,
)

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset
    from transformers import PreTrainedTokenizerBase

BYTE_ORDER_MARK = "\ufeff"  # Windows programs begin a file with it
TABLES = {".tsv": "tsv", ".csv": "csv", ".json": "json", ".jsonl": "json"}
TABLES |= {f"{suffix}.gz": kind for suffix, kind in TABLES.items()} | {".parquet": "parquet"}
# A part of the key of datasets' cache, which knows a reader by its name alone: raise it whenever one gives other rows.
READERS_VERSION = 2


@strict
@dataclass(kw_only=True)
class CorpusConfig:
    """Where parallel text comes from: two text files, one file, or a data set on the Hub.

    Args:
        source, target: aligned text files, plain or .gz; one line is one "\\n". A test set may have a list of targets:
            the references of its sources.
        path: one .tsv, .csv, .jsonl, .json or .parquet file (all but the last also as .gz). In a .tsv a quotation
            mark is a character like others; in a .csv it quotes.
        dataset, subset, split: a data set on the Hub.
        source_column, target_column: names of the two sides in `path` or `dataset`; they are looked for in the
            field `translation` if there is one (there they are language codes, as a rule).
        streaming: read while training instead of preparing the whole corpus on disk first.

    Raises:
        ValueError: not exactly one of the three ways; a field that the chosen way has no use for.
    """

    source: str | None = None
    target: str | list[str] | None = None
    path: str | None = None
    dataset: str | None = None
    subset: str | None = None
    split: str = "train"
    source_column: str = "source"
    target_column: str = "target"
    streaming: bool = False

    def __post_init__(self):
        ways = [self.source is not None or self.target is not None, self.path is not None, self.dataset is not None]
        if sum(ways) != 1 or (self.source is None) != (self.target is None):
            raise ValueError("a corpus is given by both source and target, or by path, or by dataset, and by one way")
        if self.target == []:
            raise ValueError("target=[] must name at least one file")
        useless = {"subset": None, "split": "train"} if self.dataset is None else {}
        if self.source is not None:
            useless |= {"source_column": "source", "target_column": "target"}
        for name, default in useless.items():
            if getattr(self, name) != default:
                where = "a dataset" if name in ("subset", "split") else "path or dataset"
                raise ValueError(f"{name}={getattr(self, name)} is of use only with {where}; leave it out")


@dataclass
class DroppedPairs:
    """What `prepare_pairs` kept and what it left out, in pairs.

    Of a stream, the counts grow while it is read, and go on growing when it is read again.
    """

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
        """Count one pair; whether it is kept."""
        setattr(self, outcome, getattr(self, outcome) + 1)
        return outcome == "kept"


def read_lines(path: str | Path) -> Iterator[str]:
    """The lines of a plain or .gz text file.

    A line ends at "\\n" and nowhere else: U+2028 or a carriage return inside a sentence would shift the alignment
    under Python's own `splitlines`. A carriage return before the "\\n" is taken for a Windows line end, and a byte
    order mark at the beginning of the file is dropped; elsewhere U+FEFF is text.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a line that is not UTF-8; names the line and the byte in it. A damaged .gz file.
    """
    path = _existing(path)
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        yield from decode_lines(file, str(path))


def decode_lines(lines: Iterable[bytes], name: str) -> Iterator[str]:
    """Lines of bytes, such as an open binary file or standard input, as `read_lines` gives them.

    Args:
        name: of the file, for messages.

    Raises:
        ValueError: as `read_lines`.
    """
    number = 0
    try:
        for line in lines:
            number += 1
            text = line.decode("utf-8")
            if number == 1 and text.startswith(BYTE_ORDER_MARK):
                text = text.removeprefix(BYTE_ORDER_MARK)
                if not text:  # an empty file, as Windows programs write it
                    continue
            yield text.removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{name}, line {number}: byte {error.start + 1} is not UTF-8; convert the file, for example with "
            "iconv -f latin1 -t utf-8"
        ) from error
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{name} is not a whole gzip file, after line {number}: {error}") from error


def read_aligned(source: str | Path, target: str | Path) -> Iterator[dict[str, str]]:
    """Pairs of two aligned files.

    Raises:
        ValueError: at the end of the shorter file, if they differ in length; names both counts and the first line
            on which one side is empty and the other is not, or else the first surplus line.
    """
    suspicious = None
    for number, (one, other) in enumerate(zip_longest(read_lines(source), read_lines(target)), start=1):
        if one is None or other is None:
            source_count, target_count = (sum(1 for _ in read_lines(path)) for path in (source, target))
            raise ValueError(
                f"{source} has {source_count} lines, {target} has {target_count}; line i of one must be the "
                f"translation of line i of the other; first suspicious line: {suspicious or number}"
            )
        if suspicious is None and bool(one.strip()) != bool(other.strip()):
            suspicious = number
        yield {"source": one, "target": other}


def read_table(path: str | Path, source_column: str, target_column: str) -> Iterator[dict[str, str]]:
    """Pairs of a .tsv, .csv, .json, .jsonl or .parquet file, by its name; a missing value is an empty text.

    Raises:
        ValueError: another name; a column that is not there; a row that is not as its format says, or not text.
    """
    name, columns = str(path), (source_column, target_column)
    kind = next((kind for suffix, kind in TABLES.items() if name.endswith(suffix)), None)
    if kind == "tsv":
        return parse_tsv(read_lines(path), name, *columns)
    if kind == "csv":
        return parse_csv(read_lines(path), name, *columns)
    if kind == "json":
        return parse_json(lambda: read_lines(path), name, *columns)
    if kind == "parquet":
        return read_parquet(path, *columns)
    raise ValueError(f"corpus file {path}: the name must end in .tsv, .csv, .json, .jsonl (also .gz) or .parquet")


def load_corpus(config: CorpusConfig) -> "Dataset | IterableDataset":
    """The corpus as a `datasets.Dataset` (memory-mapped) or, if streaming, `IterableDataset`.

    Files are read through before anything else is done with them; if streaming, their errors come when the bad row is
    reached, and text files of different length are noticed at the end of the shorter one.

    Returns:
        Columns `source` and `target`, both text; a missing value is an empty text.

    Raises:
        FileNotFoundError, ValueError: one line that names the file and what is wrong with it.
    """
    from datasets import disable_progress_bars

    disable_progress_bars()
    if isinstance(config.target, list):
        raise ValueError(f"target={config.target}: several references are for a test set; name one file")
    if config.source is not None and config.target is not None:
        files = {"source": _existing(config.source), "target": _existing(config.target)}
        return _load_from_reader(read_aligned, files, {}, config.streaming)
    if config.path is not None:
        columns = {"source_column": config.source_column, "target_column": config.target_column}
        return _load_from_reader(read_table, {"path": _existing(config.path)}, columns, config.streaming)
    return _load_data_set(config)


def load_references(config: CorpusConfig) -> tuple[list[str], list[list[str]]]:
    """The sources of a test set, and the references of each: one, or as many as `target` has files.

    Raises:
        FileNotFoundError, ValueError: as `load_corpus`; a file that is not aligned with `source`.
    """
    targets = config.target if isinstance(config.target, list) else [config.target]
    corpora: list[Any] = [load_corpus(replace(config, target=target, streaming=False)) for target in targets]
    references = zip(*(corpus["target"][:] for corpus in corpora), strict=True)
    return corpora[0]["source"][:], [list(of_one_source) for of_one_source in references]


def fingerprint(config: CorpusConfig) -> dict[str, str]:
    """What changes if the corpus does: size and SHA-256 of each file's bytes, or a data set's version.

    The version is the hash of `datasets`, over the revision on the Hub (of a local folder: the times of its files).

    Raises:
        FileNotFoundError, ValueError: as `load_corpus`.
    """
    from datasets import load_dataset_builder

    if config.dataset is not None:
        return {config.dataset: f"version {load_dataset_builder(config.dataset, config.subset).hash}"}
    assert not isinstance(config.target, list)  # a test set is no part of what a run goes on with
    found = {}
    for path in (config.source, config.target, config.path):
        if path is not None:
            found[path] = _fingerprint_of_file(_existing(path))
    return found


def _fingerprint_of_file(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return f"{file.tell()} bytes, SHA-256 {digest}"


def _existing(path: str | Path) -> Path:
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"corpus file {path} does not exist")
    if path.is_dir():
        raise ValueError(f"corpus file {path} is a folder, not a file")
    return path


def _load_from_reader(
    reader: Callable[..., Iterator[dict[str, str]]], files: dict[str, Path], options: dict[str, str], streaming: bool
) -> "Dataset | IterableDataset":
    from datasets import Dataset, IterableDataset
    from datasets.exceptions import DatasetGenerationError

    arguments = {name: str(path.resolve()) for name, path in files.items()} | options
    if next(reader(**files, **options), None) is None:
        raise ValueError(f"the corpus is empty: {' and '.join(map(str, files.values()))} without a row of text")
    if streaming:
        return IterableDataset.from_generator(reader, gen_kwargs=arguments, features=_features())
    # A part of the key of datasets' cache, which would otherwise outlive a change of the files (whose dates may stay).
    # Not a list: that would mean shards.
    version = " ".join([f"readers {READERS_VERSION}", *(_fingerprint_of_file(path) for path in files.values())])
    keys = {"reader": reader, "arguments": arguments, "version": version}
    try:
        return Dataset.from_generator(_read_version, gen_kwargs=keys, features=_features())
    except DatasetGenerationError:
        for _ in reader(**files, **options):  # raises what `datasets` has wrapped, with the path as the user gave it
            pass
        raise


def _read_version(reader: Callable[..., Iterator], arguments: dict[str, str], version: str) -> Iterator[dict]:
    return reader(**arguments)


def _features() -> Any:
    from datasets import Features, Value

    return Features({"source": Value("string"), "target": Value("string")})


def _load_data_set(config: CorpusConfig) -> "Dataset | IterableDataset":
    """A data set of the Hub, or of a local folder that stands for one; `datasets` decides on the types."""
    from datasets import Dataset, load_dataset
    from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

    where, columns = config.dataset, (config.source_column, config.target_column)
    assert where is not None
    try:
        corpus = load_dataset(where, config.subset, split=config.split, streaming=config.streaming)
        rows: Any = corpus  # the columns of a stream are known from its rows alone
        first = next(iter(rows), None)
        # A null `translation` does not show which columns it has.
        telling = next((row for row in rows if row.get(NESTED, "flat") is not None), first)
    except DatasetNotFoundError as error:
        raise FileNotFoundError(f"cannot open the data set {where}: {error}") from error
    except (DatasetGenerationError, ValueError) as error:
        if "corresponds to no data" in str(error):  # so `datasets` says that a table has no rows
            raise ValueError(f"the corpus is empty: {where} has no rows") from error
        raise ValueError(f"cannot read {where}: {' '.join(str(error.__cause__ or error).split())}") from error
    if first is None or telling is None:
        raise ValueError(f"the corpus is empty: {where} has no rows")
    nested = has_nested_columns([telling], where, *columns)
    return corpus.map(
        _select_pairs,
        batched=True,
        with_indices=True,
        fn_kwargs={"nested": nested, "where": where, "columns": columns},
        remove_columns=corpus.column_names if isinstance(corpus, Dataset) else list(first),
        features=_features(),
    )


def _select_pairs(
    batch: dict[str, list], indices: list[int], nested: bool, where: str, columns: tuple[str, str]
) -> dict[str, list[str]]:
    needed = [NESTED] if nested else list(dict.fromkeys(columns))  # others may be images, which would be decoded
    rows = [dict(zip(needed, row, strict=True)) for row in zip(*(batch[name] for name in needed), strict=True)]
    pairs = [select_pair(row, nested, f"{where}, row {i + 1}", *columns) for i, row in zip(indices, rows, strict=True)]
    return {side: [pair[side] for pair in pairs] for side in ("source", "target")}


@overload
def prepare_pairs(
    corpus: "Dataset", tokenizer: "PreTrainedTokenizerBase", max_length: int
) -> "tuple[Dataset, DroppedPairs]": ...
@overload
def prepare_pairs(
    corpus: "IterableDataset", tokenizer: "PreTrainedTokenizerBase", max_length: int
) -> "tuple[IterableDataset, DroppedPairs]": ...
def prepare_pairs(
    corpus: "Dataset | IterableDataset", tokenizer: "PreTrainedTokenizerBase", max_length: int
) -> "tuple[Dataset | IterableDataset, DroppedPairs]":
    """Tokenise both sides and drop pairs that cannot be trained on.

    Args:
        corpus: columns `source` and `target`.
        max_length: most tokens on a side, the end of the sentence included.

    Returns:
        The pairs with their text and columns `input_ids`, `labels`, `source_length`, `target_length`, and the counts
        of what was dropped (of a stream: they grow while it is read).

    Raises:
        ValueError: nothing is left.
    """
    from datasets import Dataset

    dropped = DroppedPairs(max_length=max_length)
    arguments = {"tokenizer": tokenizer, "max_length": max_length}
    pairs = corpus.map(_tokenize, batched=True, fn_kwargs=arguments)
    if not isinstance(pairs, Dataset):
        return pairs.filter(dropped.count, input_columns="outcome").remove_columns("outcome"), dropped
    outcomes = np.asarray(pairs["outcome"][:])
    for outcome in ("kept", "empty", "too_long"):
        setattr(dropped, outcome, int((outcomes == outcome).sum()))
    if dropped.kept == 0:
        raise ValueError(f"no pair is left to train on: {dropped}")
    return pairs.select((outcomes == "kept").nonzero()[0]).remove_columns("outcome"), dropped


def _tokenize(batch: dict[str, list[str]], tokenizer: "PreTrainedTokenizerBase", max_length: int) -> dict[str, list]:
    encoded = tokenizer(
        batch["source"], text_target=batch["target"], truncation=False, return_attention_mask=False, verbose=False
    )
    input_ids, labels = encoded["input_ids"], encoded["labels"]
    outcomes = []
    for source, target, source_ids, target_ids in zip(batch["source"], batch["target"], input_ids, labels, strict=True):
        if not source.strip() or not target.strip():
            outcomes.append("empty")
        else:
            outcomes.append("too_long" if max(len(source_ids), len(target_ids)) > max_length else "kept")
    return {
        "input_ids": input_ids,
        "labels": labels,
        "source_length": [len(ids) for ids in input_ids],
        "target_length": [len(ids) for ids in labels],
        "outcome": outcomes,
    }
