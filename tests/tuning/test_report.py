# SPDX-License-Identifier: Apache-2.0
"""The report of a sweep has every trial, and the best settings as overrides."""

import re
from pathlib import Path

import pytest

from tests.tuning.example_results import BUDGETS, example_results
from vanilla_transformer.tuning.report import conclusion, write_report


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("report")
    write_report(example_results(), folder)
    text = (folder / "report.md").read_text("utf-8")
    assert sorted(re.findall(r"\]\((.+\.png)\)", text)) == sorted(path.name for path in folder.glob("*.png"))
    return text


def rows_of(report: str, run: str) -> list[list[str]]:
    """The cells of the table of all trials."""
    section = report.partition(f"\n## {run}\n")[2].partition("\n## ")[0]
    table = section[section.index("| trial |") :].splitlines()
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in table]


@pytest.mark.parametrize("run", ["Transformer", "RNN"])
def test_every_trial_has_a_row_and_every_rung_a_column(report: str, run: str):
    header, _, *rows = rows_of(report, run)
    assert {len(row) for row in rows} == {len(header)}
    assert sorted(row[0] for row in rows) == ["0 (own)", *map(str, range(1, 10))]
    assert [f"{budget:g} minutes" in header for budget in BUDGETS] == [True] * 3


def test_those_that_came_farthest_come_first_and_failures_last(report: str):
    header, _, *rows = rows_of(report, "RNN")
    first = header.index("0.44 minutes")
    reached = [sum(cell != "–" for cell in row[first : first + 3]) for row in rows]
    assert reached == sorted(reached, reverse=True) == [3, 3, 2, 2, 1, 1, 1, 1, 1, 0]
    finals = [float(row[first + 2].rstrip("%")) for row in rows[:2]]
    assert finals == sorted(finals)
    assert rows[-1][-1] == r"the loss is not finite \| 10 updates were skipped"


def test_the_best_settings_are_shown_as_overrides(report: str):
    assert report.count("```\noptimizer.warmup_steps=100\noptimizer.max_grad_norm=null\n```") == 2


def test_the_conclusion_says_whether_a_trial_was_better():
    results = example_results()
    run = results["runs"]["Transformer"]
    best, own = (run["trials"][number]["rungs"][-1]["score"] for number in (run["best"], 0))
    assert conclusion(results, run) == (
        f"After 4 minutes: {best:.2f}%, by trial {run['best']}; the run's own settings: {own:.2f}%."
    )
    assert "no other trial was better" in conclusion(results, run | {"best": 0})
    assert conclusion(results, run | {"best": None}) == "All trials of the last rung failed."


def test_a_failure_of_the_runs_own_settings_in_the_last_rung_is_a_dash(tmp_path: Path):
    results = example_results()
    results["runs"]["RNN"]["trials"][0]["rungs"][-1] = {"score": None, "error": "killed"}
    write_report(results, tmp_path)
    report = (tmp_path / "report.md").read_text("utf-8")
    assert "the run's own settings: –." in report
    assert "killed" in report
