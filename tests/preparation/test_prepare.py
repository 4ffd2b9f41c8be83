# SPDX-License-Identifier: Apache-2.0
"""A preparation as a whole: the same whatever happens, several corpora, what training reads, and refusals."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from filelock import FileLock
from matplotlib.figure import Figure

from tests.preparation.planted import planted_set
from tests.preparation.test_planted_set import write
from vanilla_transformer.data import corpus as corpus_file
from vanilla_transformer.data.cache import cache_folder
from vanilla_transformer.data.corpus import CorpusConfig, load_corpus, read_lines
from vanilla_transformer.preparation import blocks, report
from vanilla_transformer.preparation.configuration import FilterConfig, PrepareConfig
from vanilla_transformer.preparation.prepare import output_corpus, prepare

WITHOUT_LANGUAGES = FilterConfig(source_scripts=["Latin"], target_scripts=["Latin"])


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PrepareConfig:
    """A preparation of a fraction of a second, in several blocks; its plot is empty."""
    monkeypatch.setattr(blocks, "PAIRS_PER_BLOCK", 20)
    monkeypatch.setattr(report, "plot_preparation", lambda results, length_step: Figure())
    rows, held_out = planted_set(clean=40, each=3, held_out=5)
    pairs = [row.pair for row in rows]
    return PrepareConfig(
        output_dir=str(tmp_path / "out"),
        corpora={"first": write(tmp_path, "first", pairs[:50]), "second": write(tmp_path, "second", pairs[50:])},
        held_out={"test": write(tmp_path, "test", held_out)},
        filters=WITHOUT_LANGUAGES,
        write_dropped=True,
        processes=1,
    )


def content(config: PrepareConfig) -> dict[str, bytes]:
    folder = Path(config.output_dir)
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def elsewhere(config: PrepareConfig, name: str, **changes) -> PrepareConfig:
    return replace(config, output_dir=str(Path(config.output_dir).with_name(name)), **changes)


def written(config: PrepareConfig, name: str) -> list[tuple[str, ...]]:
    files = (Path(config.output_dir) / f"{name}.{side}" for side in ("source", "target"))
    return list(zip(*map(read_lines, files), strict=True))


def test_the_number_of_processes_changes_nothing(config: PrepareConfig):
    prepare(config)
    several = elsewhere(config, "several", processes=2)
    prepare(several)
    assert content(several) == content(config)
    assert set(content(config)) == {
        ".lock",
        "prepared.json",
        "report.md",
        "filters.png",
        *(f"{name}.{end}" for name in ("first", "second") for end in ("source", "target", "dropped.jsonl")),
    }


def test_a_preparation_that_ends_before_any_of_its_renames_goes_on(
    config: PrepareConfig, monkeypatch: pytest.MonkeyPatch
):
    """Whatever is written has its name by a rename alone, so that these are the instants that differ."""
    prepare(elsewhere(config, "whole"))
    expected = content(elsewhere(config, "whole"))
    rename: Callable[[Path, Path], Path] = Path.replace
    for last in range(100):
        left = last

        def replace_or_end(path: Path, target: Path) -> Path:
            nonlocal left
            left -= 1
            if left < 0 and "out" in str(target):
                raise KeyboardInterrupt
            return rename(path, target)

        killed = elsewhere(config, f"out{last}")
        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", replace_or_end)
            try:
                prepare(killed)
            except KeyboardInterrupt:
                assert content(killed) != expected
            else:
                break
        prepare(killed)
        assert content(killed) == expected
    assert last > 15  # blocks, their keys, counts, texts


def test_a_finished_preparation_does_no_work_again(config: PrepareConfig):
    results = prepare(config)
    for name in config.corpora:
        Path(output_corpus(config, name).source or "").unlink()
    assert prepare(replace(config, processes=2)) == results
    assert not (Path(config.output_dir) / "first.source").exists()


def test_training_finds_the_corpus_in_the_cache(config: PrepareConfig, monkeypatch: pytest.MonkeyPatch):
    prepare(config)
    before = set(cache_folder().glob("text-*.arrow"))
    monkeypatch.setattr(corpus_file, "_write", None)  # what reads the text and writes it to the cache
    for name in config.corpora:
        rows = load_corpus(output_corpus(config, name))
        assert [(row["source"], row["target"]) for row in rows] == written(config, name)
    assert set(cache_folder().glob("text-*.arrow")) == before


def test_of_equal_pairs_the_first_corpus_keeps_one(tmp_path: Path, config: PrepareConfig):
    pairs = [("a small boat on the river", "ein kleines Boot"), ("the key of the house", "der Schlüssel des Hauses")]
    corpora = {"good": write(tmp_path, "good", pairs[:1]), "large": write(tmp_path, "large", pairs * 2)}
    config = replace(config, corpora=corpora, held_out={})
    results = prepare(config)["corpora"]
    assert written(config, "good") == pairs[:1]
    assert written(config, "large") == pairs[1:]
    assert results["large"] == results["large"] | {"read": 4, "kept": 1, "changed": 0}
    assert results["large"]["dropped"]["exact duplicate"] == 3


def test_filters_that_are_off_drop_nothing(tmp_path: Path, config: PrepareConfig):
    pairs = [("Tom 1", "Tom 2"), ("Tom 1", "Tom 2"), ("Tom 1", "Tom 2!"), ("a", "b" * 2000), ("мир", "me")]
    off = FilterConfig(
        max_length=None,
        max_length_ratio=None,
        identical=False,
        numbers=False,
        exact_duplicates=False,
        near_duplicates=None,
    )
    config = replace(config, corpora={"all": write(tmp_path, "all", pairs)}, held_out={}, filters=off)
    prepare(config)
    assert written(config, "all") == pairs


def test_several_references_are_held_out(tmp_path: Path, config: PrepareConfig):
    texts = {"s": "a boat", "t1": "ein Boot", "t2": "ein Schiff"}
    for name, text in texts.items():
        (tmp_path / name).write_text(f"{text}\n", encoding="utf-8")
    held_out = CorpusConfig(source=str(tmp_path / "s"), target=[str(tmp_path / "t1"), str(tmp_path / "t2")])
    pairs = [("the ship here", "Ein Schiff!"), ("the boats here", "ein Boot"), ("some key", "ein Schlüssel")]
    config = replace(config, corpora={"all": write(tmp_path, "all", pairs)}, held_out={"test": held_out})
    prepare(config)
    assert written(config, "all") == pairs[2:]


def test_another_configuration_is_refused(config: PrepareConfig):
    prepare(config)
    with pytest.raises(
        ValueError, match=r"prepared otherwise \(configuration.samples: then 5, now 6\); choose another"
    ):
        prepare(replace(config, samples=6))
    Path(config.corpora["second"].path or "").write_text('{"source": "a", "target": "b"}\n', encoding="utf-8")
    with pytest.raises(ValueError, match=r"prepared otherwise \(data.second.*then '\d+ bytes, SHA"):
        prepare(config)


def test_a_folder_in_use_is_refused(config: PrepareConfig):
    Path(config.output_dir).mkdir()
    with (
        FileLock(Path(config.output_dir) / ".lock"),
        pytest.raises(ValueError, match=r"output_dir=.*out is in use by another preparation"),
    ):
        prepare(config)


def test_a_corpus_of_which_nothing_is_left_is_refused(tmp_path: Path, config: PrepareConfig):
    corpora = {"bad": write(tmp_path, "bad", [("a", ""), ("1", "2")])}
    with pytest.raises(ValueError, match=r"corpora.bad: no pair of 2 is left; .*report.md says why"):
        prepare(replace(config, corpora=corpora))
    assert (Path(config.output_dir) / "report.md").is_file()


def test_files_that_are_not_aligned_are_refused_before_the_work(tmp_path: Path, config: PrepareConfig):
    for name, lines in (("s", "a\nb\n"), ("t", "a\n")):
        (tmp_path / name).write_text(lines, encoding="utf-8")
    corpus = CorpusConfig(source=str(tmp_path / "s"), target=str(tmp_path / "t"))
    with pytest.raises(ValueError, match=r"s has 2 lines, .*t has 1; line i of one must be the translation"):
        prepare(replace(config, corpora=config.corpora | {"unequal": corpus}))
    assert not list(Path(config.output_dir).rglob("*.arrow"))


KILLED = """
import sys
from vanilla_transformer.cli import main
from vanilla_transformer.preparation import blocks
blocks.PAIRS_PER_BLOCK = 100
if __name__ == "__main__":
    sys.exit(main(["prepare", *sys.argv[1:]]))
"""


@pytest.mark.slow
def test_a_killed_preparation_goes_on(tmp_path: Path):
    rows, _ = planted_set(clean=1500, each=20, held_out=5)
    raw = write(tmp_path, "raw", [row.pair for row in rows])
    script = tmp_path / "killed.py"
    script.write_text(KILLED, encoding="utf-8")

    def command(name: str) -> list[str]:
        options = [f"corpora.raw.path={raw.path}", f"output_dir={tmp_path / name}", "processes=2"]
        return [sys.executable, str(script), "prepare", *options]

    subprocess.run(command("whole"), check=True, capture_output=True)
    for wanted in (0, 1, 4, 9):
        process = subprocess.Popen(command("out"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        work = tmp_path / "out" / ".work"
        while len(list(work.glob("*.arrow"))) < wanted or not work.exists():
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert any(work.glob("*.arrow"))
    subprocess.run(command("out"), check=True, capture_output=True)
    names = sorted(os.listdir(tmp_path / "whole"))
    assert sorted(os.listdir(tmp_path / "out")) == names
    for name in names:
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
