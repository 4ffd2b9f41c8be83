# SPDX-License-Identifier: Apache-2.0
"""Tables of parallel text, row by row: .tsv, .csv, JSON and parquet. No loader guesses a type or the number of fields.

The csv loader of `datasets` takes a carriage return for the end of a row and shifts the columns of a row with too many
fields; its JSON loader infers types from the first block of a file, so that dates are no text.
"""

import json
import re
import reprlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow

NESTED = "translation"  # the field of many data sets that holds both sides, named by their languages
QUOTED = re.compile(r'[^"]*(?:""[^"]*)*')  # a quoted field of a .csv, as far as it goes on this line
JSON_WHITE_SPACE = re.compile(r"[ \t\r\n]*")

Pairs = Iterator[dict[str, str]]  # each with `source` and `target`


def parse_tsv(lines: Iterable[str], name: str, source_column: str, target_column: str) -> Pairs:
    """Pairs of a table whose fields are separated by tabs and named in its first line; nothing is quoted.

    Raises:
        ValueError: a column that is not there; a line with another number of fields than the first.
    """
    rows = ((number, line.split("\t")) for number, line in enumerate(lines, start=1))
    yield from _select_columns(rows, name, source_column, target_column)


def parse_csv(lines: Iterable[str], name: str, source_column: str, target_column: str) -> Pairs:
    """Pairs of a table whose fields are separated by commas and named in its first row (RFC 4180).

    A field that begins with a quotation mark ends at the next lone one, and may hold commas and line ends; elsewhere a
    quotation mark is a character like others. Only a line end ends a row. Blank lines are skipped.

    Raises:
        ValueError: a column that is not there; a row with another number of fields than the first; a quoted field that
            nothing closes, or that goes on after its closing quotation mark. Names the line where the row begins.
    """
    yield from _select_columns(_split_csv(lines, name), name, source_column, target_column)


def _split_csv(lines: Iterable[str], name: str) -> Iterator[tuple[int, list[str]]]:
    """The number of each row's first line, and its fields."""
    numbered = enumerate(lines, start=1)
    for number, line in numbered:
        if not line.strip(" \t"):
            continue
        if '"' not in line:
            yield number, line.split(",")
            continue
        fields, position = [], 0
        while position <= len(line):
            if not line.startswith('"', position):
                end = line.find(",", position)
                end = len(line) if end < 0 else end
                fields.append(line[position:end])
            else:
                parts, end = [], position + 1
                while True:
                    part = QUOTED.match(line, end)
                    assert part is not None  # it matches the empty text
                    parts.append(part[0].replace('""', '"'))
                    end = part.end()
                    if end < len(line):  # at a lone quotation mark
                        break
                    line, end = next(numbered, (0, None))[1], 0
                    if line is None:
                        raise ValueError(f"{name}, line {number}: a quotation mark opens a field that nothing closes")
                fields.append("\n".join(parts))
                end += 1
                if end < len(line) and line[end] != ",":
                    raise ValueError(
                        f"{name}, line {number}: field {len(fields)} goes on after its closing quotation mark; "
                        'inside a quoted field write two for one ("")'
                    )
            position = end + 1
        yield number, fields


def _select_columns(rows: Iterator[tuple[int, list[str]]], name: str, source_column: str, target_column: str) -> Pairs:
    header = next(rows, None)
    if header is None:
        return
    header_line, columns = header
    check_columns(name, columns, source_column, target_column)
    source, target = columns.index(source_column), columns.index(target_column)
    for number, fields in rows:
        if len(fields) != len(columns):
            raise ValueError(
                f"{name}, line {number}: {len(fields)} fields, but line {header_line} names {len(columns)} columns"
            )
        yield {"source": fields[source], "target": fields[target]}


def check_columns(where: object, columns: list[str], source_column: str, target_column: str) -> None:
    """Raise ValueError, which lists the columns, unless each of the two is there, and once."""
    for name in (source_column, target_column):
        if name not in columns:
            found = ", ".join(columns)
            raise ValueError(f"{where} has no column {name!r}; it has {found}: set source_column and target_column")
        if columns.count(name) > 1:
            raise ValueError(f"{where} has {columns.count(name)} columns {name!r}; give each a name of its own")


def parse_json(open_lines: Callable[[], Iterable[str]], name: str, source_column: str, target_column: str) -> Pairs:
    """Pairs of JSON objects, one a line as a rule (JSON lines), or in a list.

    The columns are looked for in the field `translation` if that is an object. A column that a row lacks, or that is
    null, is an empty text; so are both sides where `translation` is null.

    Args:
        open_lines: opens the file, which is read twice as far as the first rows that name both columns.

    Raises:
        ValueError: a column that no row has; not JSON; a column given twice in a row; a value that is not text.
    """
    keys = frozenset((NESTED, source_column, target_column))
    rows = (row for _, row in _json_rows(open_lines(), name, keys))
    nested = has_nested_columns(rows, name, source_column, target_column)
    for place, row in _json_rows(open_lines(), name, keys):
        yield select_pair(row, nested, place, source_column, target_column)


def _json_rows(lines: Iterable[str], name: str, keys: frozenset[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The place of each row, for messages, and the row.

    Args:
        keys: may be given once in an object; others are not read.
    """
    for number, value in _json_values(lines, name, keys):
        place = f"{name}, line {number}"
        rows = [(place, value)]
        if isinstance(value, list):
            rows = [(f"{place}, item {index}", item) for index, item in enumerate(value, start=1)]
        for where, row in rows:
            if not isinstance(row, dict):
                raise ValueError(f"{where}: {reprlib.repr(row)} is not an object with the columns as its keys")
            yield where, row


def _json_values(lines: Iterable[str], name: str, keys: frozenset[str]) -> Iterator[tuple[int, Any]]:
    """The line where each value begins, and the value. Values may share a line, or go over several."""
    decoder = json.JSONDecoder(object_pairs_hook=partial(_unique, keys=keys))
    numbered = enumerate(lines, start=1)
    for number, text in numbered:
        position, lookahead = 0, 1
        while True:
            start = _skip_white_space(text, position)
            number += text.count("\n", position, start)
            position = start
            if position == len(text):
                break
            try:
                value, end = decoder.raw_decode(text, position)
            except (ValueError, RecursionError) as error:
                following = None
                if isinstance(error, json.JSONDecodeError) and _skip_white_space(text, error.pos) == len(text):
                    # The value may go on. Twice as many lines each time: a value of n lines is parsed log n times.
                    following = [line for _, line in islice(numbered, lookahead)]
                if not following:
                    reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
                    raise ValueError(f"{name}, line {number}: not a JSON object with the columns ({reason})") from error
                text, lookahead = "\n".join([text, *following]), 2 * lookahead
            else:
                yield number, value
                number += text.count("\n", position, end)
                position = end


def _skip_white_space(text: str, position: int) -> int:
    found = JSON_WHITE_SPACE.match(text, position)
    assert found is not None  # it matches the empty text
    return found.end()


def _unique(pairs: list[tuple[str, Any]], keys: frozenset[str]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        given = [key for key, _ in pairs if key in keys]
        for key in given:
            if given.count(key) > 1:
                raise ValueError(f"it has the key {key!r} twice")
    return row


def has_nested_columns(rows: Iterable[dict[str, Any]], where: object, source_column: str, target_column: str) -> bool:
    """Whether the columns are in the field `translation`, by the first rows that have both.

    Raises:
        ValueError: no row has them; lists those there are.
    """
    nested, found, is_empty = False, {}, True
    for row in rows:
        is_empty = False
        if not nested and isinstance(row.get(NESTED), dict):
            nested, found = True, {}
        found |= dict.fromkeys((row.get(NESTED) or ()) if nested else row)
        if source_column in found and target_column in found:
            return nested
    if not is_empty:
        check_columns(where, list(found), source_column, target_column)
    return nested


def select_pair(
    row: dict[str, Any], nested: bool, place: str, source_column: str, target_column: str
) -> dict[str, str]:
    """Both sides of a row; a missing value is an empty text.

    Raises:
        ValueError: a value that is not text; names `place`.
    """
    sides = row
    if nested:
        sides = row.get(NESTED)
        if sides is None:
            sides = {}
        elif not isinstance(sides, dict):
            raise ValueError(f"{place}, column {NESTED!r}: {reprlib.repr(sides)} has no columns in it")
        if NESTED not in row and (source_column in row or target_column in row):
            raise ValueError(f"{place}: the columns are beside {NESTED!r} here, and in it in other rows")
    return {
        "source": _text_of(sides.get(source_column), place, source_column),
        "target": _text_of(sides.get(target_column), place, target_column),
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


def read_parquet(path: str | Path, source_column: str, target_column: str) -> Pairs:
    """Pairs of a parquet file; the columns are looked for in the field `translation` if that is a struct.

    Raises:
        ValueError: not a parquet file; a column that is not there, or whose type is not text.
    """
    from pyarrow import ArrowException, parquet, types

    try:
        with parquet.ParquetFile(path) as file:
            schema = file.schema_arrow
            nested = NESTED in schema.names and types.is_struct(schema.field(NESTED).type)
            columns = {field.name: field for field in (schema.field(NESTED).type if nested else schema)}
            names = schema.field(NESTED).type.names if nested else schema.names
            check_columns(path, names, source_column, target_column)
            for column in (source_column, target_column):
                if not _is_text(columns[column].type):
                    raise ValueError(f"{path}, column {column!r}: its type {columns[column].type} is not text")
            needed = [NESTED] if nested else list(dict.fromkeys((source_column, target_column)))
            for batch in file.iter_batches(columns=needed):
                for row in batch.to_pylist():
                    yield select_pair(row, nested, str(path), source_column, target_column)
    except (ArrowException, OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read {path}: {' '.join(str(error).split())}") from error


def _is_text(kind: "pyarrow.DataType") -> bool:
    from pyarrow import types

    if types.is_dictionary(kind):
        kind = kind.value_type
    is_string = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
    return is_string or types.is_null(kind)  # nothing but missing values
