# SPDX-License-Identifier: Apache-2.0
import json

import pytest

from vanilla_transformer.training import reporting
from vanilla_transformer.training.reporting import ProgressReport, truncate


def test_long_outputs_are_truncated():
    assert truncate("la " * 1000, max_length=10) == "la la la l …"
    assert truncate("la la", max_length=10) == "la la"


def test_figures_of_speed_are_of_the_updates_since_the_last(tiny_run, monkeypatch):
    """Six operations for each parameter and token of a side, and the side's mean length."""
    tracked, own, seconds = [], [], []
    add = ProgressReport.add

    def note(self, loss, nll, tokens, own_tokens):
        own.append((tokens, own_tokens))
        seconds.append(self.progress.seconds)
        add(self, loss, nll, tokens, own_tokens)

    monkeypatch.setattr(ProgressReport, "add", note)
    monkeypatch.setattr(ProgressReport, "_track", lambda self, group, figures: tracked.append(figures))
    monkeypatch.setattr(reporting, "measured_once", lambda *_: 1e6)
    run = tiny_run.train("training.max_updates=4")
    assert len(tracked) == 2
    spent = seconds[3] - seconds[1]
    tokens, both = (sum(update[side] for update in own[2:]) for side in (0, 1))
    assert tracked[1]["target_tokens_per_second"] == pytest.approx(tokens / spent)
    parameters = run.state.bare_model().num_parameters()
    assert tracked[1]["model_flops_utilization"] == pytest.approx(3 * parameters * both / spent / 1e6)
    assert 0 <= tracked[1]["data_waiting_share"] < 1
    assert 0.01 < tracked[1]["peak_memory_gib"] < 1000


def test_profile_updates_writes_a_chrome_trace_of_so_many_updates(tiny_run):
    run = tiny_run.train("training.max_updates=12", "training.profile_updates=3")
    trace = json.loads((run.output_dir / "profile" / "process-0.json").read_text(encoding="utf-8"))
    steps = {event["name"] for event in trace["traceEvents"] if event.get("name", "").startswith("ProfilerStep#")}
    assert len(steps) == 3


def test_nothing_is_profiled_by_default(tiny_run):
    run = tiny_run.train("training.max_updates=2")
    assert not (run.output_dir / "profile").exists()
