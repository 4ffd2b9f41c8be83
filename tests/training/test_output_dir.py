# SPDX-License-Identifier: Apache-2.0
import fcntl

import pytest


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
