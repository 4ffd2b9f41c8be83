# SPDX-License-Identifier: Apache-2.0
"""Corpora of parallel text, through `datasets`: text files, tables, json lines, parquet, the Hub."""

import csv
import gzip
import hashlib
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from huggingface_hub.dataclasses import strict

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset
    from transformers import PreTrainedTokenizerBase

BYTE_ORDER_MARK = "\ufeff"  # Windows programs write it before the names of the columns
LOADERS = {".csv": "csv", ".json": "json", ".jsonl": "json"}
LOADERS |= {f"{suffix}.gz": loader for suffix, loader in LOADERS.items()} | {".parquet": "parquet"}


@strict
@dataclass(kw_only=True)
class CorpusConfig:
    """Where parallel text comes from: two text files, one file, or a data set on the Hub.

    Args:
        source, target: aligned text files, plain or .gz; one line is one "\\n".
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
    target: str | None = None
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
    under Python's own `splitlines`. A carriage return before the "\\n" is taken for a Windows line end.

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
            yield line.decode("utf-8").removesuffix("\n").removesuffix("\r")
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


def read_tsv(path: str | Path, source_column: str, target_column: str) -> Iterator[dict[str, str]]:
    """Pairs of a table whose fields are separated by tabs and named in its first line; nothing is quoted.

    The csv loader of `datasets` would take a sentence's quotation mark for the beginning of a field of many lines,
    and a carriage return for the end of a line.

    Raises:
        ValueError: a column that is not there; a line with another number of fields than the first.
    """
    lines = read_lines(path)
    columns = next(lines, "").removeprefix(BYTE_ORDER_MARK).split("\t")
    _check_columns(path, columns, source_column, target_column)
    source, target = columns.index(source_column), columns.index(target_column)
    for number, line in enumerate(lines, start=2):
        fields = line.split("\t")
        if len(fields) != len(columns):
            raise ValueError(f"{path}, line {number}: {len(fields)} fields, but line 1 names {len(columns)} columns")
        yield {"source": fields[source], "target": fields[target]}


def load_corpus(config: CorpusConfig) -> "Dataset | IterableDataset":
    """The corpus as a `datasets.Dataset` (memory-mapped) or, if streaming, `IterableDataset`.

    Text and tsv files are read through before anything else is done with them; if streaming, their errors come when
    the bad line is reached, and files of different length are noticed at the end of the shorter one.

    Returns:
        Columns `source` and `target`, both text; a missing value is an empty text.

    Raises:
        FileNotFoundError, ValueError: one line that names the file and what is wrong with it.
    """
    from datasets import disable_progress_bars

    disable_progress_bars()
    if config.source is not None and config.target is not None:
        files = {"source": _existing(config.source), "target": _existing(config.target)}
        return _load_from_reader(read_aligned, files, {}, config.streaming)
    if config.path is not None:
        path = _existing(config.path)
        columns = {"source_column": config.source_column, "target_column": config.target_column}
        if path.name.endswith((".tsv", ".tsv.gz")):
            return _load_from_reader(read_tsv, {"path": path}, columns, config.streaming)
    return _load_with_datasets(config)


def fingerprint(config: CorpusConfig) -> dict[str, str]:
    """What changes if the corpus does: size and SHA-256 of each file's bytes, or a data set's version.

    The version is the hash of `datasets`, over the revision on the Hub (of a local folder: the times of its files).

    Raises:
        FileNotFoundError, ValueError: as `load_corpus`.
    """
    from datasets import load_dataset_builder

    if config.dataset is not None:
        return {config.dataset: f"version {load_dataset_builder(config.dataset, config.subset).hash}"}
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


def _check_columns(where: object, columns: list[str], source_column: str, target_column: str) -> None:
    for name in (source_column, target_column):
        if name not in columns:
            found = ", ".join(columns)
            raise ValueError(f"{where} has no column {name!r}; it has {found}: set source_column and target_column")


def _load_from_reader(
    reader: Callable[..., Iterator[dict[str, str]]], files: dict[str, Path], options: dict[str, str], streaming: bool
) -> "Dataset | IterableDataset":
    from datasets import Dataset, IterableDataset

    arguments = {name: str(path.resolve()) for name, path in files.items()} | options
    # The errors of the files come from here: `from_generator` would wrap them in one of its own.
    pairs = reader(**files, **options)
    if next(pairs, None) is None:
        raise ValueError(f"the corpus is empty: {' and '.join(map(str, files.values()))} have no lines of text")
    if streaming:
        return IterableDataset.from_generator(reader, gen_kwargs=arguments, features=_features())
    for _ in pairs:
        pass
    # A part of the key of datasets' cache, which would otherwise outlive a change of the files (whose dates may stay).
    # Not a list: that would mean shards.
    version = " ".join(_fingerprint_of_file(path) for path in files.values())
    return Dataset.from_generator(
        _read_version, gen_kwargs={"reader": reader, "arguments": arguments, "version": version}, features=_features()
    )


def _read_version(reader: Callable[..., Iterator], arguments: dict[str, str], version: str) -> Iterator[dict]:
    return reader(**arguments)


def _features() -> Any:
    from datasets import Features, Value

    return Features({"source": Value("string"), "target": Value("string")})


def _load_with_datasets(config: CorpusConfig) -> "Dataset | IterableDataset":
    from datasets import Dataset, load_dataset
    from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

    where = config.path or config.dataset
    assert where is not None
    empty = f"the corpus is empty: {where} has no rows"
    loader, options = _loader_of(config) if config.path is not None else ("", {})
    try:
        if config.path is not None:
            # `datasets` fails on these in ways of its own, which do not say so.
            if _has_no_rows(Path(config.path), loader):
                raise ValueError(empty)
            corpus = load_dataset(loader, data_files=where, split="train", streaming=config.streaming, **options)
        else:
            corpus = load_dataset(where, config.subset, split=config.split, streaming=config.streaming)
        first = next(iter(corpus), None)  # the columns of a stream are known from its rows alone
    except DatasetNotFoundError as error:
        raise FileNotFoundError(f"cannot open the data set {where}: {error}") from error
    except (DatasetGenerationError, ValueError) as error:
        if str(error) == empty:
            raise
        if "corresponds to no data" in str(error):  # so `datasets` says that a table has no rows
            raise ValueError(empty) from error
        raise ValueError(f"cannot read {where}: {' '.join(str(error.__cause__ or error).split())}") from error
    if first is None:
        raise ValueError(empty)
    nested = isinstance(first.get("translation"), dict)
    sides = first["translation"] if nested else first
    _check_columns(where, list(sides), config.source_column, config.target_column)
    for name in (config.source_column, config.target_column):
        if not isinstance(sides[name], str | None):
            raise ValueError(f"{where}, column {name!r}: {sides[name]!r} is not text")
    return corpus.map(
        _select_sides,
        batched=True,
        fn_kwargs={"nested": nested, "source_column": config.source_column, "target_column": config.target_column},
        remove_columns=corpus.column_names if isinstance(corpus, Dataset) else list(first),
        features=_features(),
    )


def _has_no_rows(path: Path, loader: str) -> bool:
    from pyarrow import parquet  # comes with `datasets`

    return parquet.read_metadata(path).num_rows == 0 if loader == "parquet" else next(read_lines(path), None) is None


def _select_sides(batch: dict[str, list], nested: bool, source_column: str, target_column: str) -> dict[str, list[str]]:
    if nested:
        batch = {name: [row[name] for row in batch["translation"]] for name in (source_column, target_column)}
    return {"source": [s or "" for s in batch[source_column]], "target": [t or "" for t in batch[target_column]]}


def _loader_of(config: CorpusConfig) -> tuple[str, dict[str, Any]]:
    """The loader of `datasets` for the file's name, and its options."""
    from datasets import Features, Value

    path = Path(config.path or "")
    loader = next((loader for suffix, loader in LOADERS.items() if path.name.endswith(suffix)), None)
    if loader is None:
        raise ValueError(f"corpus file {path}: the name must end in .tsv, .csv, .json, .jsonl (also .gz) or .parquet")
    if loader != "csv":
        return loader, {}
    columns = [name.removeprefix(BYTE_ORDER_MARK) for name in next(csv.reader(read_lines(path)), [])]
    names = (config.source_column, config.target_column)
    _check_columns(path, columns, *names)
    # Everything is text: "NA" is a word, and 007 is not 7.
    return loader, {"features": Features({name: Value("string") for name in names}), "na_filter": False}


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
