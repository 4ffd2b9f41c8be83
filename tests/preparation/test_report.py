# SPDX-License-Identifier: Apache-2.0
"""The report of a preparation has a count and samples for every reason."""

from pathlib import Path

import pytest

from tests.preparation.example_results import example_results
from vanilla_transformer.preparation.filters import REASONS
from vanilla_transformer.preparation.report import SHOWN, write_report


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder: Path = tmp_path_factory.mktemp("report")
    write_report(example_results(), folder)
    assert (folder / "filters.png").is_file()
    return (folder / "report.md").read_text("utf-8")


@pytest.mark.parametrize("reason", REASONS)
def test_every_reason_has_counts_and_samples(report: str, reason: str):
    counts = "3 (0.30%)" if reason == "script" else "0 (0.00%)"
    assert f"| {reason} | {counts} | 1 (0.10%) |" in report
    section = report.partition(f"\n## {reason}\n")[2].partition("\n## ")[0]
    assert f"Dropped because {REASONS[reason]}." in section
    assert f"| two | 5 | a {reason} | \\*b\\* |" in section  # as text, not markup


def test_totals_and_long_samples(report: str):
    assert "| **kept** | 997 (99.70%) | 990 (99.00%) |" in report
    assert "| **read** | 1,000 (100.00%) | 1,000 (100.00%) |" in report
    assert f"| one | 1,234 | {'x' * SHOWN} … | y |" in report
