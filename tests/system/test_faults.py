# SPDX-License-Identifier: Apache-2.0
"""Nothing is lost when things go wrong; the counts are printed by `python -m tests.system.fault_trials`."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.system.fault_trials import KINDS, run_trials

FEW = {"kills": 2, "damages": 1, "signals": 1, "seconds": 1, "changes": 1, "disks": 1, "read-only": 1}
FEW |= {"never-finite": 1, "clocks": 1}  # tests/training/ has the others, without processes
MANY = dict.fromkeys(KINDS, 10) | {"kills": 100, "damages": 40}


@pytest.mark.parametrize("counts", [FEW, pytest.param(MANY, marks=pytest.mark.slow)], ids=["a few", "many"])
def test_faults_lose_only_the_updates_since_the_last_checkpoint(tmp_path: Path, counts: Mapping[str, int]):
    trials = run_trials(tmp_path, counts, seed=1)
    total = trials.total()
    assert {kind: row.notes for kind, row in trials.rows.items() if row.survived != row.trials} == {}
    assert (total.lost, total.wrong, total.survived) == (0, 0, total.trials)
    if trials.not_run:
        pytest.skip(f"all else is survived, but on this machine some kinds cannot be run: {trials.not_run}")
    assert total.trials == sum(counts.values())
