# SPDX-License-Identifier: Apache-2.0
"""Corpora of parallel text, through `datasets`: text files, tables, json lines, parquet, the Hub."""

import gzip
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from huggingface_hub.dataclasses import strict

TABLES = {".csv": ",", ".tsv": "\t"}


@strict
@dataclass(kw_only=True)
class CorpusConfig:
    """Where parallel text comes from: two text files, one file, or a data set on the Hub.

    Args:
        source, target: aligned text files, plain or .gz; one line is one "\\n".
        path: one .tsv, .csv, .jsonl, .json or .parquet file (the first four also as .gz).
        dataset, subset, split: a data set on the Hub.
        source_column, target_column: names of the two sides in `path` or `dataset`; they are looked for in the
            field `translation` if there is one (there they are language codes, as a rule).
        streaming: read while training instead of preparing the whole corpus on disk first.

    Raises:
        ValueError: not exactly one of the three ways.
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


@dataclass
class DroppedPairs:
    """What `prepare_pairs` kept and what it left out, in pairs; of a stream, known when it has been read."""

    kept: int = 0
    empty: int = 0
    too_long: int = 0
    max_length: int = 0

    def __str__(self) -> str:
        return (
            f"{self.kept:,} pairs kept, {self.empty:,} with an empty side dropped, "
            f"{self.too_long:,} with more than {self.max_length} tokens on a side dropped"
        )


def read_lines(path: str | Path) -> Iterator[str]:
    """The lines of a plain or .gz text file.

    A line ends at "\\n" and nowhere else: U+2028 or a carriage return inside a sentence would shift the alignment
    under Python's own `splitlines`. A carriage return before the "\\n" is taken for a Windows line end.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a line that is not UTF-8; names the line and the byte. A damaged .gz file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"corpus file {path} does not exist")
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        try:
            for number, line in enumerate(file, start=1):
                yield line.decode("utf-8").removesuffix("\n").removesuffix("\r")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{path}, line {number}: byte {error.start + 1} is not UTF-8; convert the file, for example with "
                "iconv -f latin1 -t utf-8"
            ) from error
        except (EOFError, gzip.BadGzipFile) as error:
            raise ValueError(f"{path} is not a whole gzip file: {error}") from error


def read_aligned(source: str | Path, target: str | Path) -> Iterator[dict[str, str]]:
    """Pairs of two aligned files.

    Raises:
        ValueError: at the end of the shorter file, if they differ in length; names both counts and the first line
            on which one side is empty and the other is not, or else the first surplus line.
    """
    suspicious = None
    for number, (one, other) in enumerate(zip_longest(read_lines(source), read_lines(target)), start=1):
        if one is None or other is None:
            counts = {True: sum(1 for _ in read_lines(source)), False: sum(1 for _ in read_lines(target))}
            raise ValueError(
                f"{source} has {counts[True]} lines, {target} has {counts[False]}; line i of one must be the "
                f"translation of line i of the other; first suspicious line: {suspicious or number}"
            )
        if suspicious is None and bool(one.strip()) != bool(other.strip()):
            suspicious = number
        yield {"source": one, "target": other}


def load_corpus(config: CorpusConfig):
    """The corpus as a `datasets.Dataset` (memory-mapped) or, if streaming, `IterableDataset`.

    Returns:
        Columns `source` and `target`, both text.

    Raises:
        FileNotFoundError, ValueError: one line that names the file and what is wrong with it.
    """
    from datasets import Dataset, IterableDataset, disable_progress_bars

    disable_progress_bars()
    if config.source is None:
        corpus = _load_with_datasets(config)
    elif config.streaming:
        corpus = IterableDataset.from_generator(
            read_aligned, gen_kwargs={"source": config.source, "target": config.target}
        )
    else:
        pairs = sum(1 for _ in read_aligned(config.source, config.target))  # all errors of the files, plainly
        if pairs == 0:
            raise ValueError(f"the corpus is empty: {config.source} and {config.target} have no lines")
        corpus = Dataset.from_generator(
            _read_aligned_version,
            gen_kwargs={
                "source": config.source,
                "target": config.target,
                # Part of the key of datasets' cache, which would otherwise outlive a change of the files.
                "version": f"{_version(config.source)} {_version(config.target)}",  # a list would mean shards
            },
        )
    if isinstance(corpus, Dataset) and len(corpus) == 0:
        raise ValueError(f"the corpus is empty: {config.path or config.dataset} has no rows")
    return corpus


def _read_aligned_version(source: str, target: str, version: str) -> Iterator[dict[str, str]]:
    return read_aligned(source, target)


def _version(path: str) -> str:
    status = Path(path).stat()
    return f"{status.st_size} bytes at {status.st_mtime_ns} ns"


def _load_with_datasets(config: CorpusConfig):
    from datasets import load_dataset
    from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

    where = config.path or config.dataset
    try:
        if config.path is not None:
            loader, options = _loader_of(Path(config.path))
            corpus = load_dataset(
                loader, data_files=config.path, split="train", streaming=config.streaming, **options
            )
        else:
            corpus = load_dataset(config.dataset, config.subset, split=config.split, streaming=config.streaming)
    except DatasetNotFoundError as error:
        raise FileNotFoundError(f"cannot open the data set {where}: {error}") from error
    except DatasetGenerationError as error:
        raise ValueError(f"cannot read {where}: {' '.join(str(error.__cause__ or error).split())}") from error
    columns = corpus.column_names
    if columns == ["translation"]:
        corpus = corpus.flatten()
        columns = [name.removeprefix("translation.") for name in corpus.column_names]
        corpus = corpus.rename_columns(dict(zip(corpus.column_names, columns, strict=True)))
    for name in (config.source_column, config.target_column):
        if name not in columns:
            raise ValueError(f"{where} has no column {name!r}; it has {', '.join(columns)}: set source_column and target_column")
    corpus = corpus.select_columns([config.source_column, config.target_column])
    return corpus.rename_columns({config.source_column: "source", config.target_column: "target"})


def _loader_of(path: Path) -> tuple[str, dict[str, str]]:
    if not path.is_file():
        raise FileNotFoundError(f"corpus file {path} does not exist")
    suffix = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    if suffix in TABLES:
        return "csv", {"sep": TABLES[suffix], "keep_default_na": False, "dtype": "str"}
    if suffix in (".json", ".jsonl"):
        return "json", {}
    if path.suffix == ".parquet":
        return "parquet", {}
    raise ValueError(f"corpus file {path}: the name must end in .tsv, .csv, .json, .jsonl (also .gz) or .parquet")


def prepare_pairs(corpus, tokenizer, max_length: int):
    """Tokenise both sides and drop pairs that cannot be trained on.

    Args:
        corpus: columns `source` and `target`.
        max_length: most tokens on a side, the end of the sentence included.

    Returns:
        The pairs with columns `input_ids`, `labels`, `source_length`, `target_length`, and the counts of what was
        dropped.

    Raises:
        ValueError: nothing is left.
    """
    from datasets import Dataset

    dropped = DroppedPairs(max_length=max_length)

    def tokenize(batch: dict[str, list[str]]) -> dict[str, list]:
        encoded = tokenizer(batch["source"], text_target=batch["target"], return_attention_mask=False)
        sides = (encoded["input_ids"], encoded["labels"])
        empty = [not (s.strip() and t.strip()) for s, t in zip(batch["source"], batch["target"], strict=True)]
        lengths = [[len(ids) for ids in side] for side in sides]
        kind = [1 if no_text else 2 if max(pair) > max_length else 0 for no_text, *pair in zip(empty, *lengths, strict=True)]
        return {"input_ids": sides[0], "labels": sides[1], "source_length": lengths[0], "target_length": lengths[1], "kind": kind}

    pairs = corpus.map(tokenize, batched=True, remove_columns=["source", "target"])
    if isinstance(pairs, Dataset):
        kinds = pairs.with_format("numpy")["kind"][:]
        dropped.kept, dropped.empty, dropped.too_long = (int((kinds == kind).sum()) for kind in range(3))
        if dropped.kept == 0:
            raise ValueError(f"no pair is left to train on: {dropped}")
        if dropped.kept < len(pairs):
            pairs = pairs.select((kinds == 0).nonzero()[0])
        return pairs.remove_columns("kind"), dropped

    def keep(kind: int) -> bool:
        dropped.kept, dropped.empty, dropped.too_long = (
            count + (kind == i) for i, count in enumerate((dropped.kept, dropped.empty, dropped.too_long))
        )
        return kind == 0

    return pairs.filter(keep, input_columns="kind").remove_columns("kind"), dropped
