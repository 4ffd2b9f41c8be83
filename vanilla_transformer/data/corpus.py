# SPDX-License-Identifier: Apache-2.0
"""Corpora of parallel text, through `datasets`: text files, tables, JSON lines, parquet, the Hub."""

import gzip
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub.dataclasses import strict

from vanilla_transformer.data.alignment import parse_alignment
from vanilla_transformer.data.cache import file_fingerprint, prepared_once, unfinished
from vanilla_transformer.data.tables import (
    NESTED,
    Columns,
    Pairs,
    has_nested_columns,
    parse_fields,
    parse_json,
    read_parquet,
    select_pair,
)

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

BYTE_ORDER_MARK = "\ufeff"  # Windows programs begin a file with it
READERS_VERSION = 3  # part of the cache's key: raise it whenever a reader gives other rows
ROWS_PER_BLOCK = 20_000  # written and mapped at a time; an open corpus takes a few kilobytes of memory for each block


@strict
@dataclass(kw_only=True)
class CorpusConfig:
    """Where parallel text comes from: two text files, one table, or a data set on the Hub.

    Args:
        source, target: aligned text files, plain or .gz; only "\n" ends a line. A test set may have a list of
            targets: several references of its sources.
        path: one .tsv, .csv, .jsonl, .json or .parquet file (all but the last also as .gz). A quotation mark is text
            in a .tsv, and quotes in a .csv.
        dataset, subset, split: a data set on the Hub.
        source_column, target_column: names of the two sides in `path` or `dataset`, within the field `translation` if
            there is one (there they usually are language codes).
        streaming: read while training, instead of preparing the whole corpus on disk first.
        alignments: of a training corpus of text files, for `training.guided_alignment`: a file, plain or .gz, with the
            word alignments of each pair in Pharaoh's format, of which the sure links count.

    Raises:
        ValueError: not exactly one of the three; a field that the chosen one does not use.
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
    alignments: str | None = None

    def __post_init__(self):
        given = [self.source is not None or self.target is not None, self.path is not None, self.dataset is not None]
        if sum(given) != 1 or (self.source is None) != (self.target is None):
            raise ValueError("a corpus is given by both source and target, or by path, or by dataset; give one of them")
        if self.target == []:
            raise ValueError("target=[] must name at least one file")
        unused = {} if self.dataset is not None else {"subset": "a dataset", "split": "a dataset"}
        if self.source is not None:
            unused |= {"source_column": "path or dataset", "target_column": "path or dataset"}
        for name, where in unused.items():
            if getattr(self, name) != getattr(CorpusConfig, name):
                raise ValueError(f"{name}={getattr(self, name)} is used only with {where}; leave it out")
        if self.alignments is not None and (self.source is None or self.streaming):
            raise ValueError(f"alignments={self.alignments} is used only with source, and without streaming")


def read_lines(path: str | Path) -> Iterator[str]:
    """The lines of a plain or .gz text file.

    Only "\n" ends a line: Python's `splitlines` also splits at U+2028 or a carriage return inside a sentence, which
    would shift the alignment. A carriage return before the "\n" belongs to a Windows line end. A byte order mark at
    the beginning of the file is dropped; elsewhere U+FEFF is text.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a line is not UTF-8; names the line and the byte in it. The .gz file is damaged.
    """
    path = _existing(path)
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        yield from decode_lines(file, str(path))


def decode_lines(lines: Iterable[bytes], name: str) -> Iterator[str]:
    """`read_lines` for an open binary file, such as standard input; `name` stands for it in messages."""
    number = 0
    try:
        for number, line in enumerate(lines, start=1):
            text = line.decode("utf-8")
            if number == 1:
                text = text.removeprefix(BYTE_ORDER_MARK)
            if text:  # a mark alone is an empty file, as Windows programs write it
                yield text.removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{name}, line {number}: byte {error.start + 1} is not UTF-8; convert the file, for example with "
            "iconv -f latin1 -t utf-8"
        ) from error
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{name} is not a whole gzip file, after line {number}: {error}") from error


def aligned_lines(*paths: str | Path) -> Iterator[tuple[str, ...]]:
    """Line i of each file, for every i.

    Raises:
        ValueError: at the end of the shortest file, if they differ in length. Names both counts and the first line
            that is empty in one file but not in another, or else the first surplus line.
    """
    files, suspicious = [read_lines(path) for path in paths], None
    for number, lines in enumerate(zip_longest(*files), start=1):
        if None in lines:
            counts = [
                number - 1 if line is None else number + sum(1 for _ in file)
                for line, file in zip(lines, files, strict=True)
            ]
            other = next(i for i, count in enumerate(counts) if count != counts[0])
            raise ValueError(
                f"{paths[0]} has {counts[0]} lines, {paths[other]} has {counts[other]}; line i of one must be the "
                f"translation of line i of the other; first suspicious line: {suspicious or number}"
            )
        if suspicious is None and not all(map(str.strip, lines)) and any(map(str.strip, lines)):
            suspicious = number
        yield lines


def read_aligned(
    source: str | Path, target: str | Path, alignments: str | Path | None = None
) -> Iterator[dict[str, str]]:
    """Pairs of two aligned files, perhaps with the lines of a third in Pharaoh's format.

    Raises:
        ValueError: as `aligned_lines`; a line of `alignments` that cannot be one of its pair.
    """
    if alignments is None:
        for source_line, target_line in aligned_lines(source, target):
            yield {"source": source_line, "target": target_line}
        return
    for number, (source_line, target_line, links) in enumerate(aligned_lines(source, target, alignments), start=1):
        try:
            parse_alignment(links, source_line, target_line)
        except ValueError as error:
            raise ValueError(f"{alignments}, line {number}: {error}") from error
        yield {"source": source_line, "target": target_line, "alignments": links}


def read_table(path: str | Path, source_column: str, target_column: str) -> Iterator[dict[str, str]]:
    """Pairs of a .tsv, .csv, .json, .jsonl or .parquet file, by its name; a missing value is an empty text.

    Raises:
        ValueError: another name; a missing column; a row that its format does not allow, or that is not text.
    """
    name, columns = str(path), (source_column, target_column)
    match Path(name.removesuffix(".gz")).suffix:
        case ".tsv":
            return parse_fields(read_lines(path), name, columns, delimiter="\t")
        case ".csv":
            return parse_fields(read_lines(path), name, columns, delimiter=",")
        case ".json" | ".jsonl":
            return parse_json(lambda: read_lines(path), name, columns)
        case ".parquet":
            return read_parquet(path, columns)
    raise ValueError(f"corpus file {path}: the name must end in .tsv, .csv, .json, .jsonl (also .gz) or .parquet")


def load_corpus(config: CorpusConfig) -> "Dataset | IterableDataset":
    """The corpus as a memory-mapped `datasets.Dataset` or, if streaming, an `IterableDataset`.

    Files are read and checked as a whole first. A stream raises an error when it reaches the bad row, or the end of
    the shorter text file.

    Returns:
        Columns `source` and `target`, both text; a missing value is an empty text.

    Raises:
        FileNotFoundError, ValueError: one line that names the file and its fault.
    """
    from datasets import Dataset, IterableDataset, disable_progress_bars
    from datasets.arrow_reader import ArrowReader
    from datasets.fingerprint import Hasher

    disable_progress_bars()
    if isinstance(config.target, list):
        raise ValueError(f"target={config.target}: several references are for a test set; name one file")
    if config.dataset is not None:
        return _load_data_set(config)
    files, reader, columns = _files(config), read_aligned, {}
    if config.path is not None:
        reader = read_table
        columns = {"source_column": config.source_column, "target_column": config.target_column}
    if next(reader(**files, **columns), None) is None:
        raise ValueError(f"the corpus is empty: {' and '.join(files.values())} without a row of text")
    arguments = {name: str(Path(path).resolve()) for name, path in files.items()} | columns
    if config.streaming:
        return IterableDataset.from_generator(reader, gen_kwargs=arguments, features=_features())
    key = Hasher.hash([READERS_VERSION, arguments, *map(_fingerprint_of_file, files.values())])
    columns = ("source", "target") if config.alignments is None else ("source", "target", "alignments")
    with prepared_once(f"text-{key}.arrow") as path:
        if not path.exists():
            _write(reader(**arguments), path, columns)
    return Dataset(ArrowReader.read_table(str(path)), fingerprint=key)


def _write(pairs: Pairs, path: Path, columns: Sequence[str]) -> None:
    """Write all pairs as an Arrow stream, the format that `datasets` maps."""
    import pyarrow as pa

    schema = _features(columns).arrow_schema
    with unfinished(path) as partial, pa.OSFile(str(partial), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
        while rows := list(islice(pairs, ROWS_PER_BLOCK)):
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))


def load_references(config: CorpusConfig) -> tuple[list[str], list[list[str]]]:
    """The sources of a test set, and the references of each: as many as `target` has files.

    Raises:
        FileNotFoundError, ValueError: as `load_corpus`.
    """
    targets = config.target if isinstance(config.target, list) else [config.target]
    corpora: list[Any] = [load_corpus(replace(config, target=target, streaming=False)) for target in targets]
    references = zip(*(corpus["target"][:] for corpus in corpora), strict=True)
    return corpora[0]["source"][:], list(map(list, references))


def fingerprint(config: CorpusConfig) -> dict[str, str]:
    """Size and SHA-256 of each file's bytes, or the version of a data set: they change if the corpus does.

    The version is the hash of `datasets`, over the revision on the Hub (of a local folder: the times of its files).

    Raises:
        FileNotFoundError, ValueError: as `load_corpus`.
    """
    from datasets import load_dataset_builder

    if config.dataset is not None:
        return {config.dataset: f"version {load_dataset_builder(config.dataset, config.subset).hash}"}
    return {path: _fingerprint_of_file(path) for path in _files(config).values()}


def _files(config: CorpusConfig) -> dict[str, str]:
    assert not isinstance(config.target, list)  # of a test set, which a resumed run may change
    files = {"source": config.source, "target": config.target, "path": config.path, "alignments": config.alignments}
    return {name: path for name, path in files.items() if path is not None}


def _fingerprint_of_file(path: str) -> str:
    return file_fingerprint(_existing(path))


def _existing(path: str | Path) -> Path:
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"corpus file {path} does not exist")
    if path.is_dir():
        raise ValueError(f"corpus file {path} is a folder, not a file")
    return path


def _features(columns: Sequence[str] = ("source", "target")) -> Any:
    from datasets import Features, Value

    return Features({column: Value("string") for column in columns})


def _load_data_set(config: CorpusConfig) -> "Dataset | IterableDataset":
    """A data set of the Hub, or of a local folder that stands for one; `datasets` decides on the types."""
    from datasets import load_dataset
    from datasets.exceptions import DatasetGenerationError

    where, columns = config.dataset, (config.source_column, config.target_column)
    assert where is not None
    try:
        corpus = load_dataset(where, config.subset, split=config.split, streaming=config.streaming)
        rows: Any = corpus  # the columns of a stream are known from its rows alone
        # A null `translation` does not show which columns it has.
        row = next((row for row in rows if row.get(NESTED, "flat") is not None), None)
    except (DatasetGenerationError, ValueError) as error:
        if "corresponds to no data" not in str(error):  # how `datasets` says that a table has no rows
            raise ValueError(f"cannot read {where}: {' '.join(str(error.__cause__ or error).split())}") from error
        row = None
    if row is None:
        raise ValueError(f"the corpus is empty: {where} without a row of text")
    options = {"nested": has_nested_columns([row], where, columns), "where": where, "columns": columns}
    return corpus.map(
        _select_pairs,
        batched=True,
        with_indices=True,
        fn_kwargs=options,
        remove_columns=list(row),
        features=_features(),
    )


def _select_pairs(
    batch: dict[str, list], indices: list[int], nested: bool, where: str, columns: Columns
) -> dict[str, list[str]]:
    needed = [NESTED] if nested else list(dict.fromkeys(columns))  # others may be images, which would be decoded
    rows = [dict(zip(needed, row, strict=True)) for row in zip(*(batch[name] for name in needed), strict=True)]
    pairs = [select_pair(row, nested, f"{where}, row {i + 1}", columns) for i, row in zip(indices, rows, strict=True)]
    return {side: [pair[side] for pair in pairs] for side in ("source", "target")}
