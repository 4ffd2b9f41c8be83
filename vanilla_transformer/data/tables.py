# SPDX-License-Identifier: Apache-2.0
"""Tables of parallel text, row by row: .tsv, .csv, JSON and parquet. No reader guesses types or skips fields.

The csv loader of `datasets` ends a row at a carriage return and shifts the columns of a row that has too many fields;
its JSON loader infers types from the first block of a file and turns dates into timestamps.
"""

import csv
import json
import re
import reprlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

NESTED = "translation"  # the field of many data sets that holds both sides, named by their languages
NOT_WHITE_SPACE = re.compile(r"[^ \t\r\n]")  # as JSON has it
ESCAPE = "\x10"  # Unicode's "data link escape"; the csv module ends a row at a carriage return that is not escaped
ESCAPED = re.compile(f"[\r{ESCAPE}]")
MAX_FIELD_SIZE = 2**31 - 1  # characters; by default the csv module refuses a field of more than 131,072

Columns = tuple[str, str]  # names of the source and of the target column
Pairs = Iterator[dict[str, str]]  # each with `source` and `target`


def parse_fields(lines: Iterable[str], name: str, columns: Columns, *, delimiter: str) -> Pairs:
    """Pairs of a table whose first row names its columns: a .csv (RFC 4180), or a .tsv, in which nothing is quoted.

    A quoted field may hold delimiters and line ends; a quotation mark within an unquoted field is text. Blank lines
    are skipped.

    Raises:
        ValueError: a column is missing; a row has more or fewer fields than the first; a quoted field is not closed,
            or followed by text. Names the line where the row begins.
    """
    csv.field_size_limit(MAX_FIELD_SIZE)
    quoting = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
    reader = csv.reader(map(_escape, lines), strict=True, escapechar=ESCAPE, delimiter=delimiter, quoting=quoting)
    number, header, header_line, source, target = 1, [], 0, 0, 0  # a row begins at line `number`
    try:
        for fields in reader:
            if len(fields) < 2 and not "".join(fields).strip(" \t"):
                pass  # a blank line
            elif not header:
                check_columns(name, fields, columns)
                header, header_line = fields, number
                source, target = map(fields.index, columns)
            elif len(fields) != len(header):
                raise ValueError(
                    f"{name}, line {number}: {len(fields)} fields, but line {header_line} names {len(header)} columns"
                )
            else:
                yield {"source": fields[source], "target": fields[target]}
            number = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(
            f"{name}, line {number}: {error}; close each quoted field, and double a quotation mark inside it"
        ) from error


def _escape(line: str) -> str:
    if "\r" in line or ESCAPE in line:
        line = ESCAPED.sub(rf"{ESCAPE}\g<0>", line)
    return f"{line}\n"


def check_columns(where: object, found: list[str], columns: Columns) -> None:
    """Raise ValueError, which lists the columns found, unless each of the two is among them exactly once."""
    for column in columns:
        if column not in found:
            raise ValueError(
                f"{where} has no column {column!r}; it has {', '.join(found)}: set source_column and target_column"
            )
        if found.count(column) > 1:
            raise ValueError(f"{where} has {found.count(column)} columns {column!r}; give each a name of its own")


def parse_json(open_lines: Callable[[], Iterable[str]], name: str, columns: Columns) -> Pairs:
    """Pairs of JSON objects, which come one a line (JSON lines), in a list, or in any other layout.

    The columns are those of the object in the field `translation` if there is one. A column that a row lacks, or that
    is null, is an empty text; a null `translation` is two of them.

    Args:
        open_lines: opens the file. It is called twice; the first pass ends once both columns have been found.

    Raises:
        ValueError: invalid JSON; a column that no row has, or that a row has twice; a value that is not text.
    """
    keys = frozenset((NESTED, *columns))
    nested = has_nested_columns((row for _, row in _json_rows(open_lines(), name, keys)), name, columns)
    for place, row in _json_rows(open_lines(), name, keys):
        yield select_pair(row, nested, place, columns)


def _json_rows(lines: Iterable[str], name: str, keys: frozenset[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place in the file, for messages, and object) of each row; `keys` must be unique in an object.

    A line may hold several rows, and a row may take several lines.
    """
    decoder = json.JSONDecoder(object_pairs_hook=partial(_unique, keys=keys))
    numbered = enumerate(lines, start=1)
    for number, text in numbered:
        position, lookahead = 0, 1
        while found := NOT_WHITE_SPACE.search(text, position):
            start = found.start()
            number += text.count("\n", position, start)
            position, place = start, f"{name}, line {number}"
            try:
                value, position = decoder.raw_decode(text, start)
            except (ValueError, RecursionError) as error:
                is_cut = isinstance(error, json.JSONDecodeError) and not NOT_WHITE_SPACE.search(text, error.pos)
                # Twice as many lines each time: a value of n lines is parsed log n times.
                following = [line for _, line in islice(numbered, lookahead)] if is_cut else []
                if not following:
                    reason = str(error).partition(": line ")[0]
                    raise ValueError(f"{place}: not a JSON object with the columns ({reason})") from error
                text, lookahead = "\n".join([text, *following]), 2 * lookahead
                continue
            number += text.count("\n", start, position)
            rows = [(place, value)]
            if isinstance(value, list):
                rows = [(f"{place}, item {i}", item) for i, item in enumerate(value, start=1)]
            for row_place, row in rows:
                if not isinstance(row, dict):
                    raise ValueError(f"{row_place}: {reprlib.repr(row)} is not an object with the columns as its keys")
                yield row_place, row


def _unique(pairs: list[tuple[str, Any]], keys: frozenset[str]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        if repeated := [name for name in names if name in keys and names.count(name) > 1]:
            raise ValueError(f"it has the key {repeated[0]!r} twice")
    return row


def has_nested_columns(rows: Iterable[dict[str, Any]], where: object, columns: Columns) -> bool:
    """Whether the columns are in the field `translation`; reads rows until both columns have been found.

    Raises:
        ValueError: no row has them; lists the columns found.
    """
    nested, found = False, {}
    for row in rows:
        if not nested and isinstance(row.get(NESTED), dict):
            nested, found = True, {}
        found |= dict.fromkeys((row.get(NESTED) or ()) if nested else row)
        if found.keys() >= set(columns):
            return nested
    if found:
        check_columns(where, list(found), columns)
    return nested


def select_pair(row: dict[str, Any], nested: bool, place: str, columns: Columns) -> dict[str, str]:
    """Both sides of a row; a missing value is an empty text.

    Args:
        nested: whether the columns are in the field `translation`.
        place: of the row, for messages.

    Raises:
        ValueError: a value that is not text.
    """
    sides = row
    if nested:
        sides = {} if row.get(NESTED) is None else row[NESTED]
        if not isinstance(sides, dict):
            raise ValueError(f"{place}, column {NESTED!r}: {reprlib.repr(sides)} has no columns in it")
        if NESTED not in row and not row.keys().isdisjoint(columns):
            raise ValueError(f"{place}: the columns are beside {NESTED!r} here, but in it in other rows")
    source, target = columns
    return {
        "source": _text_of(sides.get(source), place, source),
        "target": _text_of(sides.get(target), place, target),
    }


def _text_of(value: Any, place: str, column: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError(f"{place}, column {column!r}: {reprlib.repr(value)} is not text")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:  # JSON can write it: "\\ud83d"
        raise ValueError(
            f"{place}, column {column!r}: character {error.start + 1} is half of a surrogate pair, which is not text"
        ) from error
    return value


def read_parquet(path: str | Path, columns: Columns) -> Pairs:
    """Pairs of a parquet file; the columns are those of the field `translation` if that is a struct.

    Raises:
        ValueError: not a parquet file; a column that is missing; a value that is not text.
    """
    from pyarrow import ArrowException, parquet, types

    try:
        with parquet.ParquetFile(path) as file:
            schema = file.schema_arrow
            nested = NESTED in schema.names and types.is_struct(schema.field(NESTED).type)
            check_columns(path, schema.field(NESTED).type.names if nested else schema.names, columns)
            needed = [NESTED] if nested else list(dict.fromkeys(columns))
            batches = (batch.to_pylist() for batch in file.iter_batches(columns=needed))
            for number, row in enumerate(chain.from_iterable(batches), start=1):
                yield select_pair(row, nested, f"{path}, row {number}", columns)
    except (ArrowException, OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read {path}: {' '.join(str(error).split())}") from error
