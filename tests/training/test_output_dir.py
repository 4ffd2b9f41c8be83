# SPDX-License-Identifier: Apache-2.0
import fcntl

import pytest
import yaml

from vanilla_transformer.training import output_dir
from vanilla_transformer.training.checkpoint import CHECKPOINTS
from vanilla_transformer.training.output_dir import claim_output_dir


class AnotherMachine:
    """What stands for the state of a process on it."""

    is_main_process, process_index = False, 8


@pytest.mark.parametrize("has_one_of_its_own", [False, True])
def test_a_disk_that_machines_do_not_share_is_named(tiny_run, monkeypatch, has_one_of_its_own):
    """Without a configuration of the main process there, or with that of another run."""
    if has_one_of_its_own:
        claim_output_dir(tiny_run.load("training.seed=5"))
    monkeypatch.setattr(output_dir, "process_state", AnotherMachine)
    with pytest.raises(ValueError, match=r"process 8 on .* does not see there what the main process wrote; choose a"):
        claim_output_dir(tiny_run.load())


def test_other_processes_see_what_the_main_one_wrote(tiny_run, monkeypatch):
    claim_output_dir(tiny_run.load())
    monkeypatch.setattr(output_dir, "process_state", AnotherMachine)
    claim_output_dir(tiny_run.load())


def test_a_run_of_before_a_field_was_added_goes_on(tiny_run):
    tiny_run.train("training.max_updates=2")
    path = tiny_run.output_dir / "config.yaml"
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    del values["training"]["compile"], values["training"]["deterministic"], values["data"]["train"]["alignments"]
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    with pytest.raises(ValueError, match=r"another training\.deterministic \(False there, True now\)"):
        tiny_run.train("training.max_updates=4", "training.deterministic=true")
    assert tiny_run.train("training.max_updates=4").state.progress.updates == 4


def test_a_run_on_a_list_of_before_a_field_of_corpora_was_added_goes_on(tiny_run):
    corpus = vars(tiny_run.load().data.train)
    train = f"data.train=[{{name: real, source: {corpus['source']}, target: {corpus['target']}}}]"
    claim_output_dir(tiny_run.load(train))
    path = tiny_run.output_dir / "config.yaml"
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    del values["data"]["train"][0]["target_tag"]
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    (tiny_run.output_dir / CHECKPOINTS / "update-00000001").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"another data\.train\[real\]\.target_tag \(None there, '<2de>' now\)"):
        claim_output_dir(tiny_run.load(train.replace("name: real", "name: real, target_tag: <2de>")))
    claim_output_dir(tiny_run.load(train))


def test_a_folder_that_cannot_be_written(tiny_run):
    (tiny_run.folder / "file").write_text("in the way", encoding="utf-8")
    with pytest.raises(PermissionError, match=r"training\.output_dir=.*file/run cannot be written"):
        tiny_run.train(f"training.output_dir={tiny_run.folder / 'file' / 'run'}")


def test_resume_false_refuses_a_folder_with_checkpoints(tiny_run):
    tiny_run.train("training.max_updates=4")
    with pytest.raises(ValueError, match=r"holds the checkpoints of a run.*choose another training\.output_dir"):
        tiny_run.train("training.max_updates=3", "training.resume=false")


def test_a_folder_may_be_moved(tiny_run):
    tiny_run.train("training.max_updates=3")
    moved = tiny_run.output_dir.rename(tiny_run.folder / "moved")
    assert tiny_run.train("training.max_updates=5", f"training.output_dir={moved}").state.progress.updates == 5


def test_resuming_with_another_configuration_is_refused(tiny_run):
    tiny_run.train("training.max_updates=4")
    with pytest.raises(
        ValueError, match=r"another model\.d_ff \(32 there, 64 now\); choose another training\.output_dir"
    ):
        tiny_run.train("model.d_ff=64")


def test_a_folder_in_use_by_another_run_is_left_alone(tiny_run):
    tiny_run.output_dir.mkdir()
    with (tiny_run.output_dir / ".lock").open("w", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write('{"pid": 4711, "host": "elsewhere", "since": "2017-06-12T17:57:34+00:00"}')
        file.flush()
        with pytest.raises(ValueError, match="in use by the run of process 4711 on elsewhere since 2017-06-12T17:57"):
            tiny_run.train()
    assert [path.name for path in tiny_run.output_dir.iterdir()] == [".lock"]
