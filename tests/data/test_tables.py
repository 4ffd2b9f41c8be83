# SPDX-License-Identifier: Apache-2.0
"""Tables: every row is checked, no type is guessed, and text stays as it was written."""

import csv
import io
import json
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from vanilla_transformer.data.corpus import CorpusConfig, load_corpus
from vanilla_transformer.data.tables import parse_fields, parse_json

COLUMNS = ("source", "target")
STREAMING = pytest.mark.parametrize("streaming", [False, True])
DELIMITERS = {"tsv": "\t", "csv": ","}


def pairs_of_csv(text: str) -> list[tuple[str, str]]:
    lines = text.removesuffix("\n").split("\n")
    return [(pair["source"], pair["target"]) for pair in parse_fields(lines, "c.csv", COLUMNS, delimiter=",")]


def pairs_of_json(text: str) -> list[tuple[str, str]]:
    lines = text.removesuffix("\n").split("\n")
    return [(pair["source"], pair["target"]) for pair in parse_json(lambda: lines, "c.jsonl", COLUMNS)]


def rows(path: Path, streaming: bool = False) -> list[tuple[str, str]]:
    corpus = load_corpus(CorpusConfig(path=str(path), streaming=streaming))
    return [(row["source"], row["target"]) for row in corpus]


class TestNumberOfFields:
    @pytest.mark.parametrize("delimiter", DELIMITERS.values(), ids=DELIMITERS)
    @pytest.mark.parametrize("fields", [["the cat", "die Katze"], ["the cat", "die Katze", "0.9", ""], ["x"] * 7])
    def test_another_number_of_fields_names_the_line(self, delimiter: str, fields: list[str]):
        table = [["source", "target", "score"], ["a", "b", "1"], fields]
        pairs = parse_fields([delimiter.join(row) for row in table], "here", COLUMNS, delimiter=delimiter)
        assert next(pairs) == {"source": "a", "target": "b"}
        with pytest.raises(ValueError, match=f"^here, line 3: {len(fields)} fields, but line 1 names 3 columns$"):
            next(pairs)

    @pytest.mark.parametrize("row", ["the cat,die Katze,0.9,", "the cat,die Katze"])
    def test_stream_fails_when_it_reaches_the_row(self, tmp_path: Path, row: str):
        path = tmp_path / "c.csv"
        path.write_text(f"source,target,score\na,b,1\n{row}\n", encoding="utf-8")
        stream = iter(load_corpus(CorpusConfig(path=str(path), streaming=True)))
        assert next(stream) == {"source": "a", "target": "b"}
        with pytest.raises(ValueError, match=r"c\.csv, line 3: \d fields"):
            next(stream)
        with pytest.raises(ValueError, match=r"c\.csv, line 3: \d fields"):
            rows(path)

    @pytest.mark.parametrize("delimiter", DELIMITERS.values(), ids=DELIMITERS)
    def test_two_columns_of_the_same_name(self, delimiter: str):
        lines = [delimiter.join(["source", "target", "source"]), delimiter.join("abc")]
        with pytest.raises(ValueError, match="has 2 columns 'source'; give each a name of its own"):
            next(parse_fields(lines, "here", COLUMNS, delimiter=delimiter))


class TestCsv:
    def test_what_pythons_csv_module_writes_comes_back(self):
        """Fields with commas, quotation marks and newlines, quoted where they have to be, or all."""
        random_fields = random.Random(1)
        alphabet = ["a", "b", " ", ",", "\r", "\x10", '"', '""', "\n", "é", "\u2028", "NA", "0"]
        table = [["".join(random_fields.choices(alphabet, k=4)) + "." for _ in range(2)] for _ in range(300)]
        for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL):
            written = io.StringIO()
            writer = csv.writer(written, lineterminator="\n", quoting=quoting)
            writer.writerows([COLUMNS, *table])
            assert [list(pair) for pair in pairs_of_csv(written.getvalue())] == table

    def test_a_quotation_mark_within_an_unquoted_field_is_a_character(self):
        text = 'source,target\na "b" c,5" \n a", "b"\n'
        expected = list(csv.reader(io.StringIO(text)))[1:]
        assert [list(pair) for pair in pairs_of_csv(text)] == expected

    @STREAMING
    def test_a_bare_carriage_return_in_an_unquoted_field_is_a_character(self, tmp_path: Path, streaming: bool):
        path = tmp_path / "c.csv"
        path.write_bytes(b'source,target\r\na\rb,c\r\nd,"e\rf"\r\n')
        assert rows(path, streaming) == [("a\rb", "c"), ("d", "e\rf")]

    def test_a_quoted_field_of_many_lines_counts_them(self):
        lines = ["source,target", '"a', "", 'b",c', "d"]
        pairs = parse_fields(lines, "here", COLUMNS, delimiter=",")
        assert next(pairs) == {"source": "a\n\nb", "target": "c"}
        with pytest.raises(ValueError, match="line 5: 1 fields"):
            next(pairs)

    def test_an_unclosed_quoted_field(self):
        with pytest.raises(ValueError, match="line 2: unexpected end of data; close each quoted field"):
            pairs_of_csv('source,target\na,"b\nc,d\n')

    def test_text_after_a_closing_quotation_mark(self):
        with pytest.raises(ValueError, match="line 2: ',' expected after .*; close each quoted field"):
            pairs_of_csv('source,target\n"a" b,c\n')

    def test_long_fields_and_nul_characters_are_text(self):
        long = "a," * 100_000  # more than csv.field_size_limit() by default
        assert pairs_of_csv(f'source,target\n"{long}",\0\n') == [(long, "\0")]

    def test_empty_lines_are_skipped(self):
        assert pairs_of_csv("\nsource,target\n\na,b\n\n") == [("a", "b")]

    def test_an_unclosed_field_is_read_in_linear_time(self):
        """Quadratic, it would take minutes, and the suite would show it."""
        with pytest.raises(ValueError, match="close each quoted field"):
            pairs_of_csv('source,target\na,"b\n' + "c d e\n" * 200_000)


class TestJson:
    @STREAMING
    @pytest.mark.parametrize("value", ["2017-06-12", "2017-06-12T17:57:34Z", "007", "true", "null", "NaN", "1e5"])
    def test_text_that_looks_like_another_type_is_text(self, tmp_path: Path, streaming: bool, value: str):
        path = tmp_path / "c.jsonl"
        path.write_text(json.dumps({"source": value, "target": value}) + "\n", encoding="utf-8")
        assert rows(path, streaming) == [(value, value)]

    @STREAMING
    @pytest.mark.parametrize("value", [5, 0.5, True, ["a"], {"a": "b"}])
    def test_a_later_value_of_another_type_names_line_and_column(self, tmp_path: Path, streaming: bool, value: object):
        path = tmp_path / "c.jsonl"
        path.write_text(
            '{"source": "a", "target": "b"}\n' + json.dumps({"source": "a", "target": value}) + "\n", encoding="utf-8"
        )
        with pytest.raises(ValueError, match=r"c\.jsonl, line 2, column 'target': .* is not text"):
            rows(path, streaming)

    @STREAMING
    @pytest.mark.parametrize(
        "row",
        [
            {"translation": None},
            {},
            {"translation": {}},
            {"translation": {"source": None, "target": None}},
        ],
    )
    @pytest.mark.parametrize("place", [0, 1])
    def test_a_missing_translation_is_two_empty_texts(self, tmp_path: Path, streaming: bool, row: dict, place: int):
        table = [{"translation": {"source": "a", "target": "b"}}]
        table.insert(place, row)
        path = tmp_path / "c.jsonl"
        path.write_text("".join(json.dumps(each) + "\n" for each in table), encoding="utf-8")
        expected = [("a", "b")]
        expected.insert(place, ("", ""))
        assert rows(path, streaming) == expected

    def test_a_translation_that_is_not_an_object(self):
        with pytest.raises(ValueError, match="line 2, column 'translation': 'x' has no columns in it"):
            pairs_of_json('{"translation": {"source": "a", "target": "b"}}\n{"translation": "x"}\n')

    @STREAMING
    def test_a_column_may_appear_in_a_later_row(self, tmp_path: Path, streaming: bool):
        path = tmp_path / "c.jsonl"
        path.write_text('{"source": "a"}\n{"source": "b", "target": "c"}\n{"target": "d"}\n', encoding="utf-8")
        assert rows(path, streaming) == [("a", ""), ("b", "c"), ("", "d")]

    @pytest.mark.parametrize("indent", [None, 1])
    @pytest.mark.parametrize("in_a_list", [False, True])
    def test_rows_in_every_layout(self, indent: int | None, in_a_list: bool):
        table = [{"source": f"s{i}", "target": f"t{i}"} for i in range(9)]
        documents = [table] if in_a_list else table
        expected = [(row["source"], row["target"]) for row in table]
        for separator in ("\n", " ", "\n\n", ""):
            assert pairs_of_json(separator.join(json.dumps(each, indent=indent) for each in documents)) == expected

    def test_a_list_of_many_lines_is_read_in_linear_time(self):
        """Quadratic, it would take minutes, and the suite would show it."""
        assert len(pairs_of_json(json.dumps([{"source": "a", "target": "b"}] * 20_000, indent=1))) == 20_000

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            (
                '{"source": "a", "target": "b"}\n{"source": "a", \n{"source": "c", "target": "d"}\n',
                "line 2: not a JSON",
            ),
            ('{"source": "a", "target": "b"}\nx\n', "line 2: not a JSON object"),
            ('{"source": "a", "target": "b"}\n\n{"source": "a"', "line 3: not a JSON object"),
            ('{"source": "a", "target": "b"}\n5\n', "line 2: 5 is not an object"),
            ('{"source": "a", "target": "b", "source": "c"}\n', "line 1: .*it has the key 'source' twice"),
            ('[{"source": "a", "target": "b"},\n 5]\n', "line 1, item 2: 5 is not an object"),
            ('{"source": "a\\ud83d", "target": "b"}\n', "line 1, column 'source': character 2 is half of a surrogate"),
            ("[" * 100_000, "line 1: not a JSON object"),
        ],
    )
    def test_damage_names_the_line(self, text: str, said: str):
        with pytest.raises(ValueError, match=said) as error:
            pairs_of_json(text)
        assert "\n" not in str(error.value)


class TestParquet:
    def write(self, folder: Path, table: pa.Table) -> Path:
        pyarrow.parquet.write_table(table, folder / "c.parquet")
        return folder / "c.parquet"

    @STREAMING
    @pytest.mark.parametrize("translation", [None, {"source": None, "target": None}])
    @pytest.mark.parametrize("place", [0, 1])
    def test_a_missing_translation_is_two_empty_texts(
        self, tmp_path: Path, streaming: bool, translation: dict | None, place: int
    ):
        translations, expected = [{"source": "a", "target": "b"}], [("a", "b")]
        translations.insert(place, translation)
        expected.insert(place, ("", ""))
        assert rows(self.write(tmp_path, pa.table({"translation": translations})), streaming) == expected

    @STREAMING
    @pytest.mark.parametrize(
        "texts",
        [
            pa.array(["a", None], pa.large_string()),
            pa.array(["a", None], pa.string_view()),
            pa.array(["a", None]).dictionary_encode(),
        ],
    )
    def test_text_types(self, tmp_path: Path, streaming: bool, texts: pa.Array):
        path = self.write(tmp_path, pa.table({"source": texts, "target": ["c", "d"]}))
        assert rows(path, streaming) == [("a", "c"), ("", "d")]

    @STREAMING
    @pytest.mark.parametrize(
        "values", [pa.array([None, 5]), pa.array([0, 1], pa.timestamp("ms")), pa.array([b"a", b"b"])]
    )
    def test_a_type_that_is_not_text(self, tmp_path: Path, streaming: bool, values: pa.Array):
        path = self.write(tmp_path, pa.table({"source": values, "target": ["c", "d"]}))
        with pytest.raises(ValueError, match=r"c\.parquet, row \d, column 'source': .* is not text"):
            rows(path, streaming)

    def test_a_file_that_is_not_parquet(self, tmp_path: Path):
        (tmp_path / "c.parquet").write_text("source,target\n", encoding="utf-8")
        with pytest.raises(ValueError, match=r"cannot read .*c\.parquet") as error:
            rows(tmp_path / "c.parquet")
        assert "\n" not in str(error.value)


class TestDataSets:
    """A local folder stands for a Hub id."""

    @STREAMING
    @pytest.mark.parametrize("place", [0, 1])
    def test_a_missing_translation_is_two_empty_texts(self, tmp_path: Path, streaming: bool, place: int):
        table: list[dict] = [{"translation": {"source": "a", "target": "b"}}]
        expected = [("a", "b")]
        table.insert(place, {"translation": None})
        expected.insert(place, ("", ""))
        (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table), encoding="utf-8")
        corpus = load_corpus(CorpusConfig(dataset=str(tmp_path), streaming=streaming))
        assert [(row["source"], row["target"]) for row in corpus] == expected

    @STREAMING
    def test_a_later_row_that_is_not_text(self, tmp_path: Path, streaming: bool):
        (tmp_path / "train.jsonl").write_text(
            '{"source": null, "target": "a"}\n{"source": 5, "target": "a"}\n', encoding="utf-8"
        )
        with pytest.raises(ValueError, match="row 2, column 'source': 5 is not text"):
            list(load_corpus(CorpusConfig(dataset=str(tmp_path), streaming=streaming)))
