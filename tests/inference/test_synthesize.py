# SPDX-License-Identifier: Apache-2.0
"""A folder of synthetic text: its contents are the same after interruptions, with any number of processes."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.conftest import write_reversals
from tests.distributed.launching import launch
from tests.inference.interruption import Interrupted, interrupt_after
from vanilla_transformer.cli import main
from vanilla_transformer.data.corpus import CorpusConfig, load_corpus, read_lines
from vanilla_transformer.inference.sampling import Sampling
from vanilla_transformer.inference.synthesize import CORPUS, MANIFEST, SynthesisConfig, synthesize
from vanilla_transformer.inference.translator import Translator

TIMEOUT = 300  # seconds, on a machine that does much else


@pytest.fixture
def translator(model_folder: Path) -> Translator:
    return Translator.from_pretrained(model_folder, device="cpu")


@pytest.fixture
def mono(tmp_path: Path) -> Path:
    """25 lines, one of them empty."""
    path = Path(write_reversals(tmp_path, "mono", 24)["target"])
    path.write_text(path.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    return path


def options(**changes) -> SynthesisConfig:
    return SynthesisConfig(**{"shard_lines": 4, "generate_kwargs": {"num_beams": 3}} | changes)


def sampled(count: int = 1, **changes) -> SynthesisConfig:
    return options(sampling=Sampling(**changes), count=count, generate_kwargs={})


def rows_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in read_lines(folder / CORPUS)]


@pytest.mark.parametrize("side", ["source", "target"])
def test_the_corpus_pairs_each_line_with_its_translation(translator, mono, tmp_path, side):
    counts = synthesize(translator, mono, tmp_path / "out", options(synthetic=side))
    lines = [line for line in read_lines(mono) if line]
    translations = translator.translate(lines, num_beams=3)
    expected = [(line, text) for line, text in zip(lines, translations, strict=True) if text]
    assert len(expected) > 15
    sides = ("target", "source") if side == "source" else ("source", "target")
    corpus = load_corpus(CorpusConfig(path=str(tmp_path / "out" / CORPUS)))
    assert list(zip(*(corpus[name][:] for name in sides), strict=True)) == expected
    assert counts == {"lines": 25, "empty lines": 1, "empty outputs": 24 - len(expected), "pairs": len(expected)}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {CORPUS, MANIFEST, ".lock"}


def test_n_best_are_those_of_the_translator_with_their_scores(translator, mono, tmp_path):
    synthesize(translator, mono, tmp_path / "out", options(count=2))
    expected = [
        {"source": each.text, "target": line, "score": round(each.score, 4), "line": number}
        for number, line in enumerate(read_lines(mono), start=1)
        for each in next(translator.n_best([line], 2, num_beams=3))
        if line and each.text and each.score is not None
    ]
    found = rows_of(tmp_path / "out")
    assert [row | {"score": pytest.approx(row["score"], abs=2e-4)} for row in expected] == found


def test_samples_are_as_many_as_asked_for_and_differ(translator, mono, tmp_path):
    counts = synthesize(translator, mono, tmp_path / "out", sampled(count=5, temperature=2.0))
    rows = rows_of(tmp_path / "out")
    assert counts["pairs"] + counts.get("empty outputs", 0) == 24 * 5
    assert [row["line"] for row in rows] == sorted(row["line"] for row in rows)
    assert len({(row["line"], row["source"]) for row in rows}) > 60


def test_lower_scores_are_dropped_and_counted(translator, mono, tmp_path):
    synthesize(translator, mono, tmp_path / "all", sampled(count=3))
    rows = rows_of(tmp_path / "all")
    lowest = sorted(row["score"] for row in rows)[len(rows) // 2] - 5e-5  # scores are rounded to 1e-4
    config = options(sampling=Sampling(), count=3, generate_kwargs={}, min_score=lowest)
    counts = synthesize(translator, mono, tmp_path / "best", config)
    assert rows_of(tmp_path / "best") == [row for row in rows if row["score"] >= lowest]
    assert counts["below the lowest score"] == len(rows) - counts["pairs"] > 0


def test_long_lines_are_left_out_and_counted(translator, mono, tmp_path):
    synthesize(translator, mono, tmp_path / "out", sampled())
    with mono.open("a", encoding="utf-8") as file:
        file.write(f"{'a ' * 20}\n{'a ' * 19}\n")  # 21 and 20 tokens, with the EOS token
    config = options(sampling=Sampling(), generate_kwargs={}, max_length=20)
    counts = synthesize(translator, mono, tmp_path / "longer", config)
    assert counts["too long"] == 1
    found, before = rows_of(tmp_path / "longer"), rows_of(tmp_path / "out")
    assert found[: len(before)] == before
    assert [row["line"] for row in found[len(before) :]] in ([], [27])


@pytest.mark.parametrize("config", [options(), sampled(count=2, top_k=5)], ids=["beams", "samples"])
def test_an_interrupted_folder_ends_with_the_same_bytes(translator, mono, tmp_path, config):
    synthesize(translator, mono, tmp_path / "whole", config)
    with pytest.raises(Interrupted):
        synthesize(translator, mono, tmp_path / "out", config, interrupt_after(3))
    (tmp_path / "out" / "shards" / ".000003.jsonl.gz").write_bytes(b"half of it")
    (tmp_path / "out" / "shards" / "000003.json").write_text("{}", encoding="utf-8")
    written = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out" / "shards").glob("[0-9]*.gz")}
    assert len(written) == 3
    decoded = []
    synthesize(translator, mono, tmp_path / "out", config, decoded.append)
    assert decoded == [4, 4, 4, 1]  # lines of the shards that were missing
    for name in (CORPUS, MANIFEST):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize("config", [options(), sampled(count=2, top_k=5)], ids=["beams", "samples"])
def test_threads_change_no_byte(translator, mono, tmp_path, config):
    before = torch.get_num_threads()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        synthesize(translator, mono, tmp_path / str(threads), config)
    torch.set_num_threads(before)
    for name in (CORPUS, MANIFEST):
        assert len({(tmp_path / str(threads) / name).read_bytes() for threads in (1, 2, 3)}) == 1


def test_a_finished_folder_is_not_decoded_again(translator, mono, tmp_path):
    counts = synthesize(translator, mono, tmp_path / "out", options())
    assert synthesize(translator, mono, tmp_path / "out", options(), lambda lines: pytest.fail("decoded")) == counts


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sampling": Sampling(temperature=0.9)}, "sampling.temperature=1.0, and this is sampling.temperature=0.9"),
        ({"sampling": Sampling(seed=2)}, "sampling.seed=1, and this is sampling.seed=2"),
        ({"sampling": None}, "sampling.temperature=1.0, and this is sampling.temperature=None"),
        ({"count": 2}, "count=1, and this is count=2"),
        ({"min_score": -1.0}, "min_score=None, and this is min_score=-1.0"),
        ({"generate_kwargs": {"max_new_tokens": 3}}, "max_new_tokens=None, and this is max_new_tokens=3"),
    ],
)
def test_another_option_is_refused(translator, mono, tmp_path, changes, said):
    begun = {"sampling": Sampling(), "generate_kwargs": {}}
    with pytest.raises(Interrupted):
        synthesize(translator, mono, tmp_path / "out", options(**begun), interrupt_after(1))
    with pytest.raises(ValueError, match=f"out was begun with {re.escape(said)}; go on with the former"):
        synthesize(translator, mono, tmp_path / "out", options(**begun | changes))


def test_another_input_or_model_is_refused(translator, mono, tmp_path):
    with pytest.raises(Interrupted):
        synthesize(translator, mono, tmp_path / "out", options(), interrupt_after(1))
    other = shutil.copy(mono, tmp_path / "copy")  # the same text under another name
    with pytest.raises(Interrupted):
        synthesize(translator, Path(other), tmp_path / "out", options(), interrupt_after(1))
    Path(other).write_text("a b\n", encoding="utf-8")
    with pytest.raises(ValueError, match="was begun with input=.* bytes, SHA-256"):
        synthesize(translator, Path(other), tmp_path / "out", options())
    translator.model.lm_head.weight.data[5, 5] += 1e-3
    with pytest.raises(ValueError, match="was begun with model="):
        synthesize(translator, mono, tmp_path / "out", options())


def test_a_folder_of_other_files_is_refused(translator, mono, tmp_path):
    with pytest.raises(ValueError, match=r"has mono.source in it, but no manifest.json; name an empty or new folder"):
        synthesize(translator, mono, tmp_path, options())


def test_a_damaged_manifest_is_refused(translator, mono, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / MANIFEST).write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match=r"manifest.json is damaged; remove the folder"):
        synthesize(translator, mono, tmp_path / "out", options())


def test_a_folder_in_use_is_refused(translator, mono, tmp_path):
    def second(lines: int) -> None:
        with pytest.raises(ValueError, match="is in use by another process"):
            synthesize(translator, mono, tmp_path / "out", options())

    synthesize(translator, mono, tmp_path / "out", options(), second)


@pytest.mark.parametrize(
    ("text", "changes", "said"),
    [
        ("", {}, "is empty: there is nothing to decode"),
        ("\n\n", {}, r"no pair is left \(2 lines, 2 empty lines\)"),
        ("a b\n", {"min_score": 0.0}, r"no pair is left \(1 lines, 1 below the lowest score\)"),
    ],
)
def test_nothing_left_is_an_error(translator, tmp_path, text, changes, said):
    (tmp_path / "mono").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=said):
        synthesize(translator, tmp_path / "mono", tmp_path / "out", options(**changes))
    assert not (tmp_path / "out" / CORPUS).exists()


def test_errors_name_the_line_of_the_file(translator, tmp_path):
    """In the second shard."""
    (tmp_path / "mono").write_text("\n" * 6 + "a b\n", encoding="utf-8")
    model = translator.model
    model.lm_head.weight.data.fill_(torch.nan)
    broken = Translator(model, translator.tokenizer, model.build_decoder())
    with pytest.raises(ValueError, match="at line 7: the logits are NaN"):
        synthesize(broken, tmp_path / "mono", tmp_path / "out", sampled())


def command(model: Path, mono: Path, output: Path, *more: str) -> list[str]:
    arguments = ["-m", "vanilla_transformer.cli", "synthesize", str(model), "--input", str(mono)]
    return [*arguments, "--output", str(output), "--shard-lines", "2", "--samples", "2", *more]


@pytest.mark.slow
def test_a_folder_killed_again_and_again_ends_with_the_same_bytes(model_folder, mono, tmp_path):
    """SIGKILL, each time after some more shards."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    assert main(command(model_folder, mono, tmp_path / "alone")[2:]) == 0
    output, kills = tmp_path / "out", 0
    while not (output / CORPUS).exists():
        shards = len(list(output.glob("shards/*.gz")))
        process = subprocess.Popen([sys.executable, *command(model_folder, mono, output)], env=environment)
        end = time.monotonic() + TIMEOUT
        while process.poll() is None and len(list(output.glob("shards/*.gz"))) <= shards + 4:
            assert time.monotonic() < end
            time.sleep(0.001)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait()
    assert kills
    assert (output / CORPUS).read_bytes() == (tmp_path / "alone" / CORPUS).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
def test_several_processes_write_the_bytes_of_one(model_folder, mono, tmp_path, processes):
    """13 shards, which they cannot share evenly."""
    assert main(command(model_folder, mono, tmp_path / "one")[2:]) == 0
    launch(command(model_folder, mono, tmp_path / "several"), processes)
    for name in (CORPUS, MANIFEST):
        assert (tmp_path / "several" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()
