# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pytest
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from vanilla_transformer.training.checkpoint import list_checkpoints, replaced_whole


def test_a_folder_is_replaced_when_all_is_written(tmp_path: Path):
    folder = tmp_path / "model"
    for text in ("old", "new"):
        with replaced_whole(folder) as unfinished:
            assert text == "old" or (folder / "weights").read_text() == "old"
            (unfinished / "weights").write_text(text)
    assert (folder / "weights").read_text() == "new"
    assert list(tmp_path.iterdir()) == [folder]


def test_a_folder_stays_as_it_was_when_writing_fails(tmp_path: Path):
    folder = tmp_path / "model"
    with replaced_whole(folder) as unfinished:
        (unfinished / "weights").write_text("old")

    def fail():
        with replaced_whole(folder) as unfinished:
            (unfinished / "weights").write_text("half of the n")
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        fail()
    assert (folder / "weights").read_text() == "old"


def test_checkpoints_are_listed_oldest_first_and_whole_ones_only(tmp_path: Path):
    names = ["update-00000900", "update-00010000", ".unfinished-update-00020000", "notes"]
    for name in names:
        (tmp_path / name).mkdir()
    assert [path.name for path in list_checkpoints(tmp_path)] == names[:2]
    assert list_checkpoints(tmp_path / "nowhere") == []


def test_the_newest_are_kept(tiny_run):
    tiny_run.train("training.checkpoint_every=1", "training.keep_checkpoints=3", "training.average_checkpoints=2")
    kept = list_checkpoints(tiny_run.output_dir / "checkpoints")
    assert [path.name for path in kept] == [f"update-{i:08d}" for i in (6, 7, 8)]


def test_each_checkpoint_is_a_model_folder(tiny_run):
    tiny_run.train()
    for folder in list_checkpoints(tiny_run.output_dir / "checkpoints"):
        assert AutoModelForSeq2SeqLM.from_pretrained(folder).config.d_model == 16
        assert AutoTokenizer.from_pretrained(folder)("a b")["input_ids"][-1] == 2
