# SPDX-License-Identifier: Apache-2.0
"""From raw corpora to files that `train` reads, with a report; a killed preparation goes on."""

import json
import random
import shutil
import unicodedata
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from filelock import FileLock, Timeout

from vanilla_transformer.console.outputs import check_output_folder, write_atomically
from vanilla_transformer.data.corpus import CorpusConfig, fingerprint, load_corpus
from vanilla_transformer.preparation.blocks import KEPT, PLACES, Block, filter_blocks, held_out_keys, read_pairs
from vanilla_transformer.preparation.configuration import PrepareConfig
from vanilla_transformer.preparation.duplicates import BANDS, find_duplicates
from vanilla_transformer.preparation.filters import EXACT, NEAR, REASONS
from vanilla_transformer.preparation.report import LENGTH_BINS, LENGTH_STEP, write_report

PREPARED, REPORT, WORK = "prepared.json", "report.md", ".work"
FORMAT = 1  # raise it whenever the same configuration gives other text

Results = dict[str, Any]  # `report` documents it
Lengths = dict[str, dict[str, list[int]]]  # state → side → pairs in each bin
Progress = Callable[[int, int], object]  # pairs that are filtered, of how many


def prepare(config: PrepareConfig, progress: Progress = lambda done, total: None) -> Results:
    """Write the folder of a preparation, or go on with it; a finished one is only read.

    Returns:
        The counts that `report` documents, as prepared.json has them.

    Raises:
        ValueError: a corpus that cannot be read; no pair is left; the folder is another preparation's, or in use.
        OSError: the folder cannot be written.
    """
    folder = Path(config.output_dir)
    check_output_folder(folder, "output_dir")
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        try:
            stack.enter_context(FileLock(folder / ".lock", timeout=0))
        except Timeout as error:
            raise ValueError(f"output_dir={folder} is in use by another preparation; wait for its end") from error
        results = _known(folder, _identity(config))
        if results is None:
            results = _prepare(config, folder, progress)
        shutil.rmtree(folder / WORK, ignore_errors=True)
    return results


def output_corpus(config: PrepareConfig, name: str) -> CorpusConfig:
    """The files of a prepared corpus, as `data.train`."""
    source, target = (str(Path(config.output_dir) / f"{name}.{side}") for side in ("source", "target"))
    return CorpusConfig(source=source, target=target)


def _prepare(config: PrepareConfig, folder: Path, progress: Progress) -> Results:
    work, done = folder / WORK, 0
    counts = _count(config, work / "counts.json")
    total = sum(counts.values())

    def advance(pairs: int) -> None:
        nonlocal done
        done += pairs
        progress(done, total)

    held_out = held_out_keys(config.held_out, config.filters.unicode_form)
    blocks = filter_blocks(config.corpora, counts, work, config.filters, held_out, config.processes, advance)
    columns = _columns(blocks, work)
    is_exact, is_near = find_duplicates(columns, config.filters.exact_duplicates, config.filters.near_duplicates)
    exact, near = np.int8(PLACES[EXACT]), np.int8(PLACES[NEAR])  # a byte a pair
    results = _write_corpora(config, blocks, np.where(is_exact, exact, near * is_near))
    write_report(results, folder)
    for name, corpus in results["corpora"].items():
        if not corpus["kept"]:
            raise ValueError(f"corpora.{name}: no pair of {corpus['read']:,} is left; {folder / REPORT} says why")
        load_corpus(output_corpus(config, name))  # into the cache: training does not read the text again
    identity = json.loads((work / PREPARED).read_text("utf-8"))
    write_atomically(
        folder / PREPARED, json.dumps(identity | {"results": results}, ensure_ascii=False, indent=1) + "\n"
    )
    return results


def _identity(config: PrepareConfig) -> dict[str, Any]:
    """Everything that decides on the result."""
    settings = asdict(config)
    del settings["output_dir"], settings["processes"]
    corpora = config.corpora | {f"held out {name}": corpus for name, corpus in config.held_out.items()}
    data = {}
    for name, corpus in corpora.items():
        targets = corpus.target if isinstance(corpus.target, list) else [corpus.target]
        for target in targets:
            data[name] = data.get(name, {}) | fingerprint(replace(corpus, target=target))
    libraries = {name: version(name) for name in ("numpy", "py3langid", "regex", "rensa")}
    versions = libraries | {"format": str(FORMAT), "Unicode": unicodedata.unidata_version}
    return {"configuration": settings, "data": data, "versions": versions}


def _known(folder: Path, identity: dict[str, Any]) -> Results | None:
    """The results if the folder is finished; `None` if the work begins or goes on.

    Raises:
        ValueError: the folder was prepared otherwise; names the first difference.
    """
    finished, begun = folder / PREPARED, folder / WORK / PREPARED
    for path in (finished, begun):
        if path.exists():
            before = json.loads(path.read_text("utf-8"))
            place = _difference({name: before[name] for name in identity}, identity)
            if place is not None:
                raise ValueError(
                    f"output_dir={folder} was prepared otherwise ({place}); choose another output_dir, or remove it"
                )
            return before.get("results")
    begun.parent.mkdir(exist_ok=True)
    write_atomically(begun, json.dumps(identity, ensure_ascii=False))
    return None


def _difference(before: Any, now: Any, where: str = "") -> str | None:
    if isinstance(before, dict) and isinstance(now, dict):
        for key in dict.fromkeys([*before, *now]):
            place = f"{where}.{key}" if where else key
            if (found := _difference(before.get(key), now.get(key), place)) is not None:
                return found
        return None
    return None if before == now else f"{where}: then {before!r}, now {now!r}"


def _count(config: PrepareConfig, path: Path) -> dict[str, int]:
    """Pairs of each corpus. Every line is read and checked before the work of hours begins."""
    if not path.exists():
        counts = {name: sum(1 for _ in read_pairs(corpus)) for name, corpus in config.corpora.items()}
        write_atomically(path, json.dumps(counts))
    return json.loads(path.read_text("utf-8"))


def _columns(blocks: list[Block], work: Path) -> list[Path]:
    """The keys of all kept pairs, a file for each column: an array of them all need not fit in memory."""
    columns = [work / f"column-{number:02}" for number in range(1 + BANDS)]
    with ExitStack() as stack:
        files = [stack.enter_context(column.open("wb")) for column in columns]
        for block in blocks:
            for file, column in zip(files, np.load(block.keys).T, strict=True):
                file.write(column.tobytes())
    return columns


def _write_corpora(config: PrepareConfig, blocks: list[Block], duplicates: np.ndarray) -> Results:
    """Write the text of all corpora, and count.

    Args:
        duplicates: `(pairs that no other filter dropped,)`: `KEPT`, or the place of the reason.
    """
    lengths = {state: {side: [0] * LENGTH_BINS for side in ("source", "target")} for state in ("read", "kept")}
    samples = _Samples(config.samples)
    results: Results = {"corpora": {}, "lengths": lengths, "samples": samples.of_reason}
    start = 0
    for name in config.corpora:
        counted: dict[str, Any] = {"read": 0, "changed": 0, "kept": 0, "dropped": dict.fromkeys(REASONS, 0)}
        results["corpora"][name] = counted
        with _Writer(config, name) as writer:
            for block in (block for block in blocks if block.corpus == name):
                rows, reasons, changed = _read_block(block)
                undecided = np.flatnonzero(reasons == KEPT)
                reasons[undecided] = duplicates[start : start + len(undecided)]
                start += len(undecided)
                first, names = counted["read"] + 1, list(REASONS)
                for line, (pair, reason) in enumerate(zip(rows, reasons.tolist(), strict=True), start=first):
                    if reason == KEPT:
                        writer.keep(pair)
                        continue
                    counted["dropped"][names[reason - 1]] += 1
                    samples.add(names[reason - 1], [name, line, *pair])
                    writer.drop(line, names[reason - 1], pair)
                _count_lengths(lengths, rows, reasons)
                for key, number in (("read", len(rows)), ("changed", changed), ("kept", (reasons == KEPT).sum())):
                    counted[key] += int(number)
    return results


def _read_block(block: Block) -> tuple[list[tuple[str, str]], np.ndarray, int]:
    """(source, target) of each pair, a copy of its reasons, and how many pairs normalisation changed."""
    import pyarrow as pa

    with pa.OSFile(str(block.text)) as file:
        table = pa.ipc.open_stream(file).read_all()
    rows = list(zip(table["source"].to_pylist(), table["target"].to_pylist(), strict=True))
    return rows, table["reason"].to_numpy().copy(), table["is_changed"].to_numpy().sum()


def _count_lengths(lengths: Lengths, rows: list[tuple[str, str]], reasons: np.ndarray) -> None:
    for side, texts in zip(("source", "target"), zip(*rows, strict=True), strict=True):
        bins = np.minimum(np.fromiter(map(len, texts), np.int64, len(texts)) // LENGTH_STEP, LENGTH_BINS - 1)
        for state, chosen in (("read", bins), ("kept", bins[reasons == KEPT])):
            found = np.bincount(chosen, minlength=LENGTH_BINS) + lengths[state][side]
            lengths[state][side] = found.tolist()


class _Samples:
    """A random choice of the dropped pairs for each reason, the same every time (reservoir sampling)."""

    def __init__(self, size: int):
        self.size = size
        self.of_reason: dict[str, list[list[str | int]]] = {reason: [] for reason in REASONS}
        self._seen, self._random = dict.fromkeys(REASONS, 0), random.Random(1)

    def add(self, reason: str, sample: list[str | int]) -> None:
        chosen = self.of_reason[reason]
        self._seen[reason] += 1
        if len(chosen) < self.size:
            chosen.append(sample)
        elif (place := self._random.randrange(self._seen[reason])) < self.size:
            chosen[place] = sample


class _Writer:
    """The files of a corpus, which take their names when all is written."""

    def __init__(self, config: PrepareConfig, name: str):
        folder, ends = Path(config.output_dir), ["source", "target"] + ["dropped.jsonl"] * config.write_dropped
        self.paths = [folder / f"{name}.{end}" for end in ends]

    def __enter__(self) -> "_Writer":
        with ExitStack() as stack:
            self.files: list[TextIO] = [
                stack.enter_context(self._hidden(path).open("w", encoding="utf-8", newline="\n")) for path in self.paths
            ]
            self._stack = stack.pop_all()
        return self

    def __exit__(self, error: type | None, *_: object) -> None:
        self._stack.close()
        for path in self.paths:
            if error is None:
                self._hidden(path).replace(path)

    @staticmethod
    def _hidden(path: Path) -> Path:
        return path.with_name(f".{path.name}")

    def keep(self, pair: tuple[str, str]) -> None:
        for file, text in zip(self.files, pair, strict=False):
            file.write(f"{text}\n")

    def drop(self, line: int, reason: str, pair: tuple[str, str]) -> None:
        for file in self.files[2:]:
            row = {"line": line, "reason": reason, "source": pair[0], "target": pair[1]}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
