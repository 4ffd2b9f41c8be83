# SPDX-License-Identifier: Apache-2.0
"""Corpora: lines stay aligned, errors are one line, dropped pairs are counted."""

import gzip
import hashlib
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
from datasets import Dataset, IterableDataset

from vanilla_transformer.data.corpus import (
    CorpusConfig,
    decode_lines,
    fingerprint,
    load_corpus,
    read_aligned,
    read_lines,
)

STREAMING = pytest.mark.parametrize("streaming", [False, True])
# Each line would be cut, or joined with the next, by some reader of lines or of tables.
AWKWARD = ["a\u2028b", "c\rd", 'he said "e', "f\x85g\x0ch\x1ci", "NA", "007", '"j" k', "  l  ", "émoji 🙂"]


def write(path: Path, text: str) -> Path:
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def two_files(folder: Path, source: str, target: str, suffix: str = "") -> CorpusConfig:
    source_path, target_path = write(folder / f"s.txt{suffix}", source), write(folder / f"t.txt{suffix}", target)
    return CorpusConfig(source=str(source_path), target=str(target_path))


def rows(config: CorpusConfig) -> list[tuple[str, str]]:
    return [(row["source"], row["target"]) for row in load_corpus(config)]


def one_line_of(error: pytest.ExceptionInfo) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


class TestCorpusConfig:
    @pytest.mark.parametrize(
        "fields",
        [{}, {"source": "a"}, {"target": "a"}, {"source": "a", "path": "b"}, {"path": "b", "dataset": "c"}],
    )
    def test_exactly_one_origin(self, fields: dict[str, str]):
        with pytest.raises(ValueError, match="source and target, or by path, or by dataset"):
            CorpusConfig(**fields)

    @pytest.mark.parametrize(
        "fields",
        [
            {"path": "a.csv", "subset": "x"},
            {"path": "a.csv", "split": "test"},
            {"source": "a", "target": "b", "source_column": "en"},
        ],
    )
    def test_unused_fields_are_refused(self, fields: dict[str, str]):
        name, value = list(fields.items())[-1]
        with pytest.raises(ValueError, match=f"{name}={value}"):
            CorpusConfig(**fields)


class TestTextFiles:
    @STREAMING
    @pytest.mark.parametrize("suffix", ["", ".gz"])
    def test_only_a_line_feed_ends_a_line(self, tmp_path: Path, streaming: bool, suffix: str):
        config = two_files(tmp_path, "\n".join(AWKWARD) + "\n", "\n".join(reversed(AWKWARD)) + "\n", suffix)
        config.streaming = streaming
        assert rows(config) == list(zip(AWKWARD, reversed(AWKWARD), strict=True))

    def test_windows_line_ends_are_removed(self, tmp_path: Path):
        assert list(read_lines(write(tmp_path / "a", "one\r\n\r\ntwo\r\n"))) == ["one", "", "two"]

    def test_last_line_feed_may_be_missing(self, tmp_path: Path):
        assert rows(two_files(tmp_path, "a\nb", "c\nd\n")) == [("a", "c"), ("b", "d")]

    @STREAMING
    @pytest.mark.parametrize("suffix", ["", ".gz"])
    def test_byte_order_mark_is_dropped(self, tmp_path: Path, streaming: bool, suffix: str):
        """A mark is dropped at the start of the file alone: elsewhere, U+FEFF is a character like others."""
        config = two_files(tmp_path, "\ufeffa \ufeffb\n\ufeffc\n", "\ufeff\ufeffd\n\ufeff\n", suffix)
        config.streaming = streaming
        assert rows(config) == [("a \ufeffb", "\ufeffd"), ("\ufeffc", "\ufeff")]

    def test_byte_order_mark_alone_is_an_empty_file(self):
        assert list(decode_lines([b"\xef\xbb\xbf"], "here")) == []
        assert list(decode_lines([b"\xef\xbb\xbf\n"], "here")) == [""]

    @STREAMING
    def test_dataset_type(self, tmp_path: Path, streaming: bool):
        config = two_files(tmp_path, "a\n", "b\n")
        config.streaming = streaming
        corpus = load_corpus(config)
        assert isinstance(corpus, IterableDataset if streaming else Dataset)
        assert corpus.column_names == ["source", "target"]

    def test_changed_file_with_an_unchanged_date_is_read_again(self, tmp_path: Path):
        config = two_files(tmp_path, "a\n", "b\n")
        assert rows(config) == [("a", "b")]
        status = os.stat(tmp_path / "s.txt")
        write(tmp_path / "s.txt", "c\n")  # as long as before
        os.utime(tmp_path / "s.txt", ns=(status.st_atime_ns, status.st_mtime_ns))
        assert rows(config) == [("c", "b")]

    def test_misaligned_files_name_both_counts_and_the_first_surplus_line(self, tmp_path: Path):
        with pytest.raises(ValueError, match=r"has 3 lines, .* has 2; .* suspicious line: 3$") as error:
            load_corpus(two_files(tmp_path, "a\nb\nc\n", "a\nb\n"))
        one_line_of(error)

    def test_misaligned_files_name_the_first_line_empty_on_one_side(self, tmp_path: Path):
        with pytest.raises(ValueError, match=r"has 3 lines, .* has 4; .* suspicious line: 2$"):
            load_corpus(two_files(tmp_path, "a\nb\nc\n", "a\n\nb\nc\n"))

    def test_misaligned_stream_fails_at_the_end_of_the_shorter_file(self, tmp_path: Path):
        config = two_files(tmp_path, "a\nb\nc\n", "a\nb\n")
        config.streaming = True
        stream = iter(load_corpus(config))
        assert [next(stream)["source"], next(stream)["source"]] == ["a", "b"]
        with pytest.raises(ValueError, match="has 3 lines"):
            next(stream)

    def test_pairs_are_read_lazily(self, tmp_path: Path):
        pairs = read_aligned(write(tmp_path / "s", "a\n\n"), write(tmp_path / "t", "b\n"))
        assert next(pairs) == {"source": "a", "target": "b"}

    @STREAMING
    @pytest.mark.parametrize("suffix", ["", ".gz"])
    def test_invalid_utf8_names_file_line_and_byte(self, tmp_path: Path, streaming: bool, suffix: str):
        config = two_files(tmp_path, "a\nb\n", "c\nd\n", suffix)
        config.streaming = streaming
        damaged = b"a\ncaf\xe9\n"  # latin-1, byte 4 of line 2
        Path(config.source).write_bytes(gzip.compress(damaged) if suffix else damaged)
        with pytest.raises(ValueError, match=r"s\.txt\S*, line 2: byte 4 is not UTF-8; .*iconv") as error:
            list(load_corpus(config))
        one_line_of(error)

    @STREAMING
    def test_missing_file(self, tmp_path: Path, streaming: bool):
        config = CorpusConfig(source=str(tmp_path / "no"), target=str(tmp_path / "no"), streaming=streaming)
        with pytest.raises(FileNotFoundError, match="no does not exist") as error:
            load_corpus(config)
        one_line_of(error)

    def test_folder_instead_of_a_file(self, tmp_path: Path):
        with pytest.raises(ValueError, match="is a folder"):
            load_corpus(CorpusConfig(source=str(tmp_path), target=str(tmp_path)))

    @STREAMING
    def test_empty_corpus(self, tmp_path: Path, streaming: bool):
        config = two_files(tmp_path, "", "")
        config.streaming = streaming
        with pytest.raises(ValueError, match="corpus is empty"):
            load_corpus(config)

    def test_truncated_gzip_file(self, tmp_path: Path):
        whole = gzip.compress("".join(f"{i}\n" for i in range(1000)).encode())
        (tmp_path / "a.gz").write_bytes(whole[: len(whole) // 2])
        with pytest.raises(ValueError, match=r"a\.gz is not a whole gzip file"):
            list(read_lines(tmp_path / "a.gz"))

    def test_plain_file_named_gz(self, tmp_path: Path):
        (tmp_path / "a.gz").write_bytes(b"plain\n")
        with pytest.raises(ValueError, match=r"a\.gz is not a whole gzip file"):
            list(read_lines(tmp_path / "a.gz"))


class TestOneFile:
    """Each format must bring back the same awkward texts."""

    @STREAMING
    @pytest.mark.parametrize("name", ["c.tsv", "c.tsv.gz"])
    def test_tsv(self, tmp_path: Path, streaming: bool, name: str):
        text = "id\ttarget\tsource\n" + "".join(f"{i}\t{line}!\t{line}\n" for i, line in enumerate(AWKWARD))
        config = CorpusConfig(path=str(write(tmp_path / name, text)), streaming=streaming)
        assert rows(config) == [(line, f"{line}!") for line in AWKWARD]

    @STREAMING
    @pytest.mark.parametrize("name", ["c.csv", "c.csv.gz"])
    def test_csv(self, tmp_path: Path, streaming: bool, name: str):
        quoted = ['"' + line.replace('"', '""') + '"' for line in AWKWARD]  # RFC 4180
        text = "id,source,target\n" + "".join(f"{i},{line},x\n" for i, line in enumerate(quoted))
        config = CorpusConfig(path=str(write(tmp_path / name, text)), streaming=streaming)
        assert rows(config) == [(line, "x") for line in AWKWARD]

    def test_csv_numbers_stay_text(self, tmp_path: Path):
        path = write(tmp_path / "c.csv", "source,target\n007,1.50\n12,NA\n")
        assert rows(CorpusConfig(path=str(path))) == [("007", "1.50"), ("12", "NA")]

    @STREAMING
    @pytest.mark.parametrize("name", ["c.jsonl", "c.json", "c.jsonl.gz"])
    def test_json_lines_with_a_translation_field_among_others(self, tmp_path: Path, streaming: bool, name: str):
        values = [{"id": i, "translation": {"de": f"{s}!", "en": s}} for i, s in enumerate(AWKWARD)]
        path = write(tmp_path / name, "".join(json.dumps(value) + "\n" for value in values))
        config = CorpusConfig(path=str(path), source_column="en", target_column="de", streaming=streaming)
        assert rows(config) == [(s, f"{s}!") for s in AWKWARD]

    @STREAMING
    def test_parquet(self, tmp_path: Path, streaming: bool):
        table = pa.table({"fr": AWKWARD, "en": AWKWARD[::-1], "n": range(len(AWKWARD))})
        pyarrow.parquet.write_table(table, tmp_path / "c.parquet")
        config = CorpusConfig(
            path=str(tmp_path / "c.parquet"), source_column="en", target_column="fr", streaming=streaming
        )
        assert rows(config) == list(zip(AWKWARD[::-1], AWKWARD, strict=True))

    @STREAMING
    def test_data_set_with_splits(self, tmp_path: Path, streaming: bool):
        """A local folder stands for a Hub id: `load_dataset` resolves both alike."""
        for split in ("train", "test"):
            write(tmp_path / f"{split}.jsonl", json.dumps({"source": split, "target": "x"}) + "\n")
        config = CorpusConfig(dataset=str(tmp_path), split="test", streaming=streaming)
        assert rows(config) == [("test", "x")]

    @STREAMING
    def test_missing_value_is_an_empty_text(self, tmp_path: Path, streaming: bool):
        path = write(tmp_path / "c.jsonl", '{"source": "a", "target": "b"}\n{"source": null, "target": "d"}\n')
        assert rows(CorpusConfig(path=str(path), streaming=streaming)) == [("a", "b"), ("", "d")]

    @STREAMING
    @pytest.mark.parametrize(
        ("name", "text"),
        [
            ("c.tsv", "en\tde\na\tb\n"),
            ("c.csv", "en,de\na,b\n"),
            ("c.jsonl", '{"en": "a", "de": "b"}\n'),
            ("c.jsonl", '{"translation": {"en": "a", "de": "b"}}\n'),
        ],
    )
    def test_missing_column_lists_the_columns_found(self, tmp_path: Path, streaming: bool, name: str, text: str):
        config = CorpusConfig(path=str(write(tmp_path / name, text)), streaming=streaming)
        with pytest.raises(ValueError, match=r"no column 'source'; it has en, de: set source_column") as error:
            load_corpus(config)
        one_line_of(error)

    @pytest.mark.parametrize(
        ("name", "text"),
        [
            ("c.tsv", "source\ttarget\na\tb\n"),
            ("c.csv", "source,target\na,b\n"),
            ("c.csv", '"source","target"\na,b\n'),
            ("c.jsonl.gz", '{"source": "a", "target": "b"}\n'),
            ("c.json", '[\n{"source": "a", "target": "b"}]'),
        ],
    )
    def test_byte_order_mark_of_a_table_is_dropped(self, tmp_path: Path, name: str, text: str):
        path = write(tmp_path / name, f"\ufeff{text}")
        assert rows(CorpusConfig(path=str(path))) == [("a", "b")]

    def test_tsv_row_with_another_number_of_fields_is_named(self, tmp_path: Path):
        path = write(tmp_path / "c.tsv", "source\ttarget\na\tb\nc\n")
        with pytest.raises(ValueError, match=r"c\.tsv, line 3: 1 fields, but line 1 names 2 columns"):
            load_corpus(CorpusConfig(path=str(path)))

    @STREAMING
    def test_values_that_are_not_text(self, tmp_path: Path, streaming: bool):
        path = write(tmp_path / "c.jsonl", '{"source": 5, "target": "b"}\n')
        with pytest.raises(ValueError, match="column 'source': 5 is not text"):
            load_corpus(CorpusConfig(path=str(path), streaming=streaming))

    @STREAMING
    @pytest.mark.parametrize(
        ("name", "text"), [("c.tsv", "source\ttarget\n"), ("c.csv", "source,target\n"), ("c.jsonl", "")]
    )
    def test_table_without_rows(self, tmp_path: Path, streaming: bool, name: str, text: str):
        path = write(tmp_path / name, text)
        with pytest.raises(ValueError, match=f"corpus is empty: .*{name}"):
            load_corpus(CorpusConfig(path=str(path), streaming=streaming))

    @STREAMING
    def test_parquet_file_without_rows(self, tmp_path: Path, streaming: bool):
        table = pa.table({"source": pa.array([], pa.string()), "target": pa.array([], pa.string())})
        pyarrow.parquet.write_table(table, tmp_path / "c.parquet")
        with pytest.raises(ValueError, match=r"corpus is empty: .*c\.parquet"):
            load_corpus(CorpusConfig(path=str(tmp_path / "c.parquet"), streaming=streaming))

    def test_unknown_split_lists_the_splits(self, tmp_path: Path):
        write(tmp_path / "train.jsonl", '{"source": "a", "target": "b"}\n')
        with pytest.raises(ValueError, match="cannot read .*dev.*train") as error:
            load_corpus(CorpusConfig(dataset=str(tmp_path), split="dev"))
        one_line_of(error)

    def test_damaged_json_names_the_file(self, tmp_path: Path):
        path = write(tmp_path / "c.jsonl", '{"source": "a", "target": \n')
        with pytest.raises(ValueError, match=r"c\.jsonl") as error:
            load_corpus(CorpusConfig(path=str(path)))
        one_line_of(error)

    def test_unknown_suffix(self, tmp_path: Path):
        with pytest.raises(ValueError, match=r"c\.xml: the name must end in"):
            load_corpus(CorpusConfig(path=str(write(tmp_path / "c.xml", "x"))))

    def test_missing_path(self, tmp_path: Path):
        with pytest.raises(FileNotFoundError, match="does not exist"):
            load_corpus(CorpusConfig(path=str(tmp_path / "c.csv")))


class TestFingerprint:
    def test_fingerprint_is_size_and_hash(self, tmp_path: Path):
        config = two_files(tmp_path, "a\n", "été\n")
        assert fingerprint(config) == {
            config.source: f"2 bytes, SHA-256 {hashlib.sha256(b'a' + bytes([10])).hexdigest()}",
            config.target: f"6 bytes, SHA-256 {hashlib.sha256('été'.encode() + bytes([10])).hexdigest()}",
        }

    def test_fingerprint_changes_though_size_and_time_do_not(self, tmp_path: Path):
        path = write(tmp_path / "c.csv", "source,target\na,b\n")
        config, status = CorpusConfig(path=str(path)), os.stat(path)
        before = fingerprint(config)
        write(path, "source,target\na,c\n")
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        assert before.keys() == fingerprint(config).keys() == {str(path)}
        assert before != fingerprint(config)

    @STREAMING
    def test_fingerprint_of_another_version(self, tmp_path: Path, streaming: bool):
        config = CorpusConfig(dataset=str(tmp_path), streaming=streaming)
        path = write(tmp_path / "train.jsonl", json.dumps({"source": "a", "target": "x"}) + "\n")
        before = fingerprint(config)
        assert fingerprint(config) == before
        os.utime(path, (1, 1))  # of a local folder, the times of its files are the version
        assert fingerprint(config) != before

    def test_missing_file(self, tmp_path: Path):
        with pytest.raises(FileNotFoundError, match="does not exist"):
            fingerprint(CorpusConfig(path=str(tmp_path / "c.csv")))
