# SPDX-License-Identifier: Apache-2.0
"""torchrun starts a run again whose process was killed, and the run ends as the one that was not."""

import pytest

from tests.distributed.launching import launch
from tests.distributed.test_resuming import SMALL_BATCHES, contents

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("killed", [0, 1])
def test_a_run_restarted_by_torchrun_ends_as_the_uninterrupted_one(tiny_run, monkeypatch, killed):
    """Dropout is on; the checkpoint before is two updates old, in the middle of an epoch."""
    settings = [*SMALL_BATCHES, "training.max_updates=12", "training.checkpoint_every=4"]
    script = ["--max-restarts", "1", "-m", "tests.distributed.killed_once", str(tiny_run.config), *settings]
    found = []
    for name, process in (("whole", "none"), ("restarted", str(killed))):
        monkeypatch.setenv("KILLED", process)
        launch([*script, f"training.output_dir={tiny_run.folder / name}"])
        found.append(contents(tiny_run.folder / name / "checkpoints" / "update-00000012"))
    assert found[0].keys() == found[1].keys()
    assert [name for name in found[0] if found[0][name] != found[1][name]] == []
