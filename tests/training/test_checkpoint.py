# SPDX-License-Identifier: Apache-2.0
import json
import logging
import os
import shutil
import threading
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from accelerate import Accelerator
from safetensors.torch import load_file
from torch.distributed.fsdp import fully_shard
from torch.multiprocessing.spawn import start_processes
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, PreTrainedTokenizerBase

from tests.conftest import TinyRun
from tests.distributed.launching import free_port
from tests.families import FAMILIES
from vanilla_transformer.training import atomic_folder, loop, manifest
from vanilla_transformer.training.checkpoint import Checkpoints, list_checkpoints
from vanilla_transformer.training.configuration import TrainingConfig
from vanilla_transformer.training.schedule import paper_schedule
from vanilla_transformer.training.train_state import Progress, TrainState


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """A run of 8 updates with checkpoints of 4 and 8; not to be written to."""
    run = TinyRun(tmp_path_factory.mktemp("finished"))
    run.train()
    return run


class Copy:
    """The finished run in another folder, to be damaged and gone on with."""

    def __init__(self, run: TinyRun, folder: Path):
        self.run, self.folder = run, folder
        self.checkpoints = folder / "checkpoints"
        shutil.copytree(run.output_dir, folder)

    def go_on(self, updates: int, *overrides: str, averaged: int = 1):
        return self.run.train(
            f"training.output_dir={self.folder}",
            f"training.max_updates={updates}",
            f"training.average_checkpoints={averaged}",
            *overrides,
        )

    def names(self) -> list[str]:
        return sorted(path.name for path in self.checkpoints.iterdir())


@pytest.fixture
def copy(finished: TinyRun, tmp_path: Path) -> Copy:
    return Copy(finished, tmp_path / "copy")


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def remembers_events(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Path]]:
    """What is flushed to the disk and what is renamed, in order."""
    events = []
    fsync, rename = os.fsync, Path.rename

    def note_fsync(descriptor: int) -> None:
        events.append(("fsync", Path(os.readlink(f"/proc/self/fd/{descriptor}"))))
        fsync(descriptor)

    def note_rename(path: Path, target: Path) -> Path:
        events.append(("rename", path))
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(Path, "rename", note_rename)
    return events


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


def test_checkpoints_are_flushed_before_they_are_renamed(tiny_run, monkeypatch):
    events = remembers_events(monkeypatch)
    tiny_run.train("training.checkpoint_every=1000", "training.average_checkpoints=1")
    folder = tiny_run.output_dir / "checkpoints"
    unfinished, checkpoint = folder / ".unfinished-update-00000008", folder / "update-00000008"
    renamed = events.index(("rename", unfinished))
    expected = [unfinished / path.relative_to(checkpoint) for path in [checkpoint, *checkpoint.rglob("*")]]
    assert {("fsync", path) for path in expected} <= set(events[:renamed])
    assert events[renamed + 1] == ("fsync", folder)


def test_only_json_safetensors_and_text_are_written(finished):
    """The model's own code is text too."""
    for checkpoint in list_checkpoints(finished.output_dir / "checkpoints"):
        for path in (path for path in checkpoint.rglob("*") if path.is_file()):
            if path.suffix == ".safetensors":
                assert load_file(path)
            elif path.suffix == ".json":
                json.loads(path.read_text("utf-8"))
            else:
                assert path.suffix in (".txt", ".py")
                assert path.read_text("utf-8").isprintable() or "\n" in path.read_text("utf-8")


def test_resuming_unpickles_nothing(copy, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a pickle was read")

    monkeypatch.setattr("pickle.load", refuse)
    monkeypatch.setattr("torch.load", refuse)
    assert copy.go_on(9).state.progress.updates == 9


@pytest.mark.parametrize(
    ("name", "damage"),  # test_manifest.py has every damage to every file
    [
        ("model.safetensors", truncate),
        ("optimizer.safetensors", flip_a_bit),
        ("config.json", Path.unlink),
        ("tokenizer.json", flip_a_bit),
        ("manifest.json", truncate),
        ("manifest.json", Path.unlink),
    ],
)
def test_resuming_from_the_newest_undamaged_checkpoint(copy, caplog, name: str, damage):
    caplog.set_level(logging.INFO, logger="vanilla_transformer")
    damage(copy.checkpoints / "update-00000008" / name)
    copy.go_on(5)
    assert f"update-00000008 is damaged and left out: {name if name != 'manifest.json' else ''}" in caplog.text
    assert f"resuming from {copy.checkpoints / 'update-00000004'}: 4 updates" in caplog.text


def test_damaged_checkpoints_alone_are_an_error_that_names_each(copy):
    truncate(copy.checkpoints / "update-00000004" / "optimizer.safetensors")
    (copy.checkpoints / "update-00000008" / "config.json").unlink()
    before = sorted(copy.folder.rglob("*"))
    with pytest.raises(
        ValueError,
        match=r"are damaged \(update-00000008: config.json is missing; update-00000004: optimizer.safetensors has .* "
        r"bytes, manifest.json says .*\); choose another training.output_dir, or remove that folder to start anew",
    ):
        copy.go_on(9)
    assert set(before) <= set(copy.folder.rglob("*"))


def test_the_last_undamaged_checkpoint_outlives_a_failed_save(copy, monkeypatch):
    truncate(copy.checkpoints / "update-00000008" / "model.safetensors")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(TrainState, "copy", lambda self: fail)
    with pytest.raises(OSError, match="update-00000006 cannot be written .*No space left"):
        copy.go_on(6, "training.keep_checkpoints=1")
    assert copy.names() == ["update-00000004", "update-00000008"]
    assert manifest.find_damage(copy.checkpoints / "update-00000004") is None


def test_damaged_checkpoints_do_not_count_as_kept(copy):
    truncate(copy.checkpoints / "update-00000008" / "model.safetensors")
    copy.go_on(6, "training.keep_checkpoints=2")
    assert copy.names() == ["update-00000004", "update-00000006"]


def test_training_goes_on_while_a_checkpoint_is_written(tiny_run, monkeypatch):
    """It holds the state of its own update, however late it is written; the next one waits for it."""
    whole = tiny_run.train(f"training.output_dir={tiny_run.folder / 'whole'}")
    trained, begun, write = threading.Event(), [], atomic_folder.write_manifest

    def wait_for_updates(folder: Path) -> None:
        if "update-" in folder.name:
            begun.append(threading.current_thread())
            assert len(begun) > 1 or trained.wait(60)
        write(folder)

    step = loop.backward

    def backward(state, *rest):
        if state.progress.updates == 6:
            assert list_checkpoints(tiny_run.output_dir / "checkpoints") == []
            trained.set()
        return step(state, *rest)

    monkeypatch.setattr(atomic_folder, "write_manifest", wait_for_updates)
    monkeypatch.setattr(loop, "backward", backward)
    run = tiny_run.train()
    assert len(begun) == 2
    assert threading.main_thread() not in begun
    for name in ("update-00000004", "update-00000008"):
        for file in ("model.safetensors", "optimizer.safetensors"):
            found, expected = (load_file(each.output_dir / "checkpoints" / name / file) for each in (run, whole))
            torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_old_damaged_checkpoints_do_not_count_as_kept(copy):
    flip_a_bit(copy.checkpoints / "update-00000004" / "model.safetensors")  # of the same size
    copy.go_on(12, "training.keep_checkpoints=2")
    assert copy.names() == ["update-00000008", "update-00000012"]


def test_an_older_damaged_checkpoint_is_logged(copy, caplog):
    """It would have been a part of the mean of the last ones."""
    older = copy.checkpoints / "update-00000004"
    flip_a_bit(older / "model.safetensors")
    copy.go_on(12, averaged=3)
    assert caplog.text.count(f"checkpoint {older} is damaged and left out: model.safetensors has another sha256") == 1


def test_hashes_are_compared_once_in_a_process(copy, monkeypatch):
    compared = []
    find_damage = manifest.find_damage

    def note(folder: Path, hashes: bool = True) -> str | None:
        if hashes:
            compared.append(folder.name)
        return find_damage(folder, hashes)

    monkeypatch.setattr("vanilla_transformer.training.checkpoint.find_damage", note)
    copy.go_on(12, "training.checkpoint_every=1")
    assert compared == ["update-00000008", "update-00000004"]


def test_a_checkpoint_that_was_being_written_is_cleared_away(copy):
    shutil.copytree(copy.checkpoints / "update-00000008", copy.checkpoints / ".unfinished-update-00000012")
    assert copy.go_on(9).state.progress.updates == 9
    assert copy.names() == ["update-00000004", "update-00000008", "update-00000009"]


def test_pickles_of_an_earlier_version_are_refused(copy):
    newest = copy.checkpoints / "update-00000008"
    (newest / "manifest.json").unlink()
    for name in ("optimizer.bin", "random_states_0.pkl"):
        (newest / name).write_bytes(b"")
    with pytest.raises(
        ValueError,
        match=f"checkpoint {newest} is of an earlier version, whose pickled files .optimizer.bin, random_states_0.pkl. "
        "are not read any more; choose another training.output_dir to start anew, or go on with that version$",
    ):
        copy.go_on(9)


def save_sharded(rank: int, port: int, folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """In each of two processes: save a sharded model after an update, spoil it, and load it again."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "ACCELERATE_USE_CPU": "true"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True)
    model = AutoModelForSeq2SeqLM.from_pretrained(folder / "model")
    fully_shard(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1, fused=True)
    progress = Progress()
    state = TrainState(accelerator, model, optimizer, paper_schedule(optimizer, 16, 10), progress)
    checkpoints = Checkpoints(
        folder / "checkpoints", TrainingConfig(output_dir=str(folder), max_updates=1), tokenizer, state
    )
    ids = torch.tensor([[3, 4, 2]])
    model(input_ids=ids, labels=ids, num_items_in_batch=torch.tensor(3)).loss.backward()
    optimizer.step()
    progress.updates = 1
    expected = [parameter.to_local().clone() for parameter in model.parameters()]
    checkpoints.save()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert checkpoints.load_latest() == folder / "checkpoints" / "update-00000001"
    for parameter, before in zip(model.parameters(), expected, strict=True):
        assert torch.equal(parameter.to_local(), before)
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("tied", [True, False])
def test_a_sharded_model_is_saved_unsharded(model_folder, tmp_path: Path, tied: bool):
    alone = FAMILIES[0].model(dropout=0.0, tie_word_embeddings=tied).float()
    alone.save_pretrained(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    start_processes(save_sharded, (free_port(), tmp_path, tokenizer), nprocs=2, start_method="spawn")
    loaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "checkpoints" / "update-00000001").state_dict()
    assert {name: weight.shape for name, weight in loaded.items()} == {
        name: weight.shape for name, weight in alone.state_dict().items()
    }
    assert not torch.equal(loaded["lm_head.weight"], alone.state_dict()["lm_head.weight"])
