# SPDX-License-Identifier: Apache-2.0
"""Nothing is lost when things go wrong; the counts are printed by `python -m tests.system.fault_trials`."""

import pytest

from tests.system.fault_trials import LOSSES, run_trials


@pytest.mark.parametrize(
    ("kills", "damages"), [(4, 2), pytest.param(100, 40, marks=pytest.mark.slow)], ids=["a few", "many"]
)
def test_faults_cost_nothing_but_the_updates_since_the_last_checkpoint(tmp_path, kills, damages):
    counts = run_trials(tmp_path, kills, damages, seed=1).counts
    assert counts["kills"] == kills
    assert counts["files cut"] + counts["bits turned"] == damages
    assert counts["runs to the end"] >= 1
    assert {what: counts[what] for what in LOSSES} == dict.fromkeys(LOSSES, 0)
