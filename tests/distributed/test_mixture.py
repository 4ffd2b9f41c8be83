# SPDX-License-Identifier: Apache-2.0
"""Several corpora among processes of this machine: what a whole run trains on, and how an interrupted one ends."""

import json
from collections import Counter
from pathlib import Path

import pytest
import torch

from tests.distributed.launching import start_together, weights
from vanilla_transformer.training import loop
from vanilla_transformer.training.configuration import load_run_config

pytestmark = pytest.mark.slow

CLEAN, BT = {"name": "clean", "tag": "<clean>", "weight": 2.0}, {"name": "bt", "tag": "<bt>", "weight": 0.5}


def train_and_count(config: Path, overrides: list[str]) -> None:
    """Train, and add the pairs that this process has trained on, by the first token of their sources, to a file."""
    counts, backward = Counter(), loop.backward

    def watch(state, micro_batches, training):
        counts.update(int(token) for batch in micro_batches for token in batch["input_ids"][:, 0])
        return backward(state, micro_batches, training)

    loop.backward = watch
    run = loop.train(load_run_config(config, overrides))
    by_tag = {tag: counts[run.tokenizer.convert_tokens_to_ids(tag)] for tag in ("<clean>", "<bt>")}
    assert sum(by_tag.values()) == counts.total()
    with (run.output_dir / f"counts-{run.state.accelerator.process_index}.jsonl").open("a", encoding="utf-8") as file:
        file.write(f"{json.dumps(by_tag)}\n")


def counted(folder: Path) -> Counter:
    """The pairs of all processes, over all parts of the run."""
    counts = Counter()
    for path in folder.glob("counts-*.jsonl"):
        for line in path.read_text(encoding="utf-8").splitlines():
            counts.update(json.loads(line))
    return counts


def train_whole_and_in_parts(tiny_run, processes: int, corpora: str, epochs: int) -> list[Path]:
    """The folders of an uninterrupted run, and of one that was interrupted within its first epochs."""
    folders = [tiny_run.folder / "whole", tiny_run.folder / "parts"]
    options = [corpora, "data.max_length=20", "training.max_source_tokens=40", "training.max_target_tokens=40"]
    for folder, updates in ((folders[0], "null"), (folders[1], "3"), (folders[1], "7"), (folders[1], "null")):
        settings = [f"training.output_dir={folder}", f"training.max_updates={updates}", f"training.max_epochs={epochs}"]
        start_together(train_and_count, processes, tiny_run.config, [*options, *settings])
        if updates != "null":
            [progress] = folder.glob(f"checkpoints/update-0000000{updates}/progress.json")
            assert json.loads(progress.read_text(encoding="utf-8"))["batches"] > 0  # in the middle of an epoch
    return folders


def assert_equal_weights(folders: list[Path]) -> None:
    expected, found = (weights(folder / "model") for folder in folders)
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        assert torch.equal(found[name], weight), name


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_processes_train_on_weight_times_size_pairs_whether_interrupted_or_not(tiny_run, processes):
    """Each epoch shows 40 pairs twice and half of 120 pairs; an interruption changes no bit of the weights."""
    folders = train_whole_and_in_parts(tiny_run, processes, tiny_run.corpora("train", (40, CLEAN), (120, BT)), 3)
    for folder in folders:
        assert counted(folder) == {"<clean>": 3 * 2 * 40, "<bt>": 3 * 120 / 2}
    assert_equal_weights(folders)


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_processes_train_on_streams_by_their_shares_whether_interrupted_or_not(tiny_run, processes):
    """Streams are shown 4 pairs to 1 within one percent, until both have been read; a run resumes to the bit."""
    clean, bt = (corpus | {"streaming": True} for corpus in (CLEAN, BT))
    folders = train_whole_and_in_parts(tiny_run, processes, tiny_run.corpora("train", (100, clean), (60, bt)), 2)
    for folder in folders:
        counts = counted(folder)
        assert counts["<clean>"] / counts.total() == pytest.approx(0.8, abs=0.01)
        assert counts["<bt>"] >= 2 * 60
    assert_equal_weights(folders)
