# SPDX-License-Identifier: Apache-2.0
"""The report is complete, names the missing parts, and shows outputs of models without acting on their markup."""

import re
from pathlib import Path
from typing import Any

import pytest

from tests.comparison.example_results import MODELS, example_results
from vanilla_transformer.comparison.crossing import crossing_table
from vanilla_transformer.comparison.markdown import escape, table
from vanilla_transformer.comparison.report import write_report
from vanilla_transformer.comparison.verdicts import verdicts

PARTS = {"speed": 1, "long_range": 2, "quality": 2}  # number of plots


@pytest.fixture(scope="module")
def whole_report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of the example; read-only."""
    folder = tmp_path_factory.mktemp("report")
    write_report(example_results(), folder)
    return folder / "report.md"


def report_of(results: dict[str, Any], folder: Path) -> str:
    write_report(results, folder)
    return (folder / "report.md").read_text(encoding="utf-8")


def only(part: str) -> dict[str, Any]:
    """The example with one part: plots are slow."""
    return {key: value if key in ("machines", part) else None for key, value in example_results().items()}


def unescape(text: str) -> str:
    return re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", text)


def cells_of(row: str) -> list[str]:
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]]


def tables_of(report: str) -> list[list[str]]:
    return [block.splitlines() for block in report.split("\n\n") if block.startswith("|")]


def section(report: str, title: str) -> str:
    """From a heading to the next of its level."""
    return report.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def test_the_report_shows_every_plot_and_every_model(whole_report: Path):
    report = whole_report.read_text(encoding="utf-8")
    assert whole_report.name == "report.md"
    pictures = re.findall(r"!\[.+\]\((.+)\)", report)
    assert sorted(pictures) == sorted(file.name for file in whole_report.parent.glob("*.png"))
    assert len(pictures) == sum(PARTS.values())
    for title in ("Models", "Speed of training", "Long range", "Quality"):
        assert all(model in section(report, title) for model in MODELS), title


@pytest.mark.parametrize("part", PARTS)
def test_missing_parts_are_not_measured(tmp_path: Path, part: str):
    report = report_of(only(part), tmp_path)
    sections = {"speed": "Speed of training", "long_range": "Long range", "quality": "Quality"}
    assert {name for name, title in sections.items() if "Not measured." not in section(report, title)} == {part}
    assert report.count(": not measured.**") == 2
    assert len(list(tmp_path.glob("*.png"))) == PARTS[part]


def test_an_empty_comparison_has_a_report(tmp_path: Path):
    report = report_of(example_results() | dict.fromkeys(PARTS), tmp_path)
    assert report.count(": not measured.**") == 3
    assert not list(tmp_path.glob("*.png"))


def test_parts_of_long_range_may_be_empty(tmp_path: Path):
    results = only("long_range")
    results["long_range"]["gradients"] = []
    assert "Not measured." in section(report_of(results, tmp_path), "Long range")
    assert not (tmp_path / "gradients.png").exists()
    assert (tmp_path / "long_range.png").exists()


def test_the_verdicts_come_first(whole_report: Path):
    report = whole_report.read_text(encoding="utf-8")
    headings = re.findall(r"^## (.+)$", report, flags=re.MULTILINE)
    assert headings[0] == "Verdicts"
    shown = unescape(section(report, "Verdicts"))
    for verdict in (verdict for part in verdicts(example_results()).values() for verdict in part):
        headline, *groups = verdict.sentences
        assert f"- **{headline}**" in shown
        assert all(sentence in shown for sentence in groups)


def test_the_verdict_table_has_every_pair(whole_report: Path):
    report = whole_report.read_text(encoding="utf-8")
    rows = [cells_of(row) for rows in tables_of(section(report, "Verdicts")) for row in rows[2:]]
    shown = sorted(cell for row in rows for cell in row if re.match(r"(ahead|behind|no clear difference): ", cell))
    judged = [verdict for part in verdicts(example_results()).values() for verdict in part]
    findings = [finding for verdict in judged for finding in verdict.findings]
    assert shown == sorted(f"{finding.outcome}: {finding.difference}" for finding in findings)
    assert {"LSTM + attention", "LSTM"} <= {cell for row in rows for cell in row}


def test_all_rows_of_a_table_have_equal_lengths(whole_report: Path):
    report = whole_report.read_text(encoding="utf-8")
    tables = tables_of(report)
    assert len(tables) > 10
    for rows in tables:
        assert {len(cells_of(row)) for row in rows} == {len(cells_of(rows[0]))}, rows[0]


def test_the_speed_table_has_the_median_and_the_extremes(tmp_path: Path):
    results = only("speed")
    results["speed"]["parameters"] = {"Transformer": 1000, "GRU": 1000}
    case = {"length": 64, "batch_size": 4} | results["speed"]["training"]
    results["speed"]["rows"] = [
        case | {"model": model, "attention": attention, "tokens_per_second": repeats}
        for model, attention, repeats in (
            ("Transformer", "sdpa", [1000.0, 4000.0, 2000.0]),
            ("GRU", None, [500.0, 500.0, 2000.0]),
        )
    ]
    report = report_of(results, tmp_path)
    speeds, *_ = tables_of(section(report, "Speed of training"))
    assert cells_of(speeds[2]) == ["64", "4", "2,000 (1,000 to 4,000)", "500 (500 to 2,000)", "sdpa"]
    assert "From the fewest threads" not in report


def test_the_gain_of_threads_is_the_ratio_of_paired_repeats(tmp_path: Path):
    results = only("speed")
    results["speed"]["training"] = {"precision": "float32", "threads": 2}
    case = {"length": 64, "batch_size": 1, "precision": "float32", "attention": "eager"}
    results["speed"]["rows"] = [
        case | {"model": model, "threads": threads, "tokens_per_second": repeats}
        for model, threads, repeats in (
            ("Transformer", 1, [100.0, 200.0, 100.0]),
            ("Transformer", 2, [200.0, 300.0, 180.0]),
            ("GRU + attention", 1, [100.0, 100.0, 100.0]),
            ("GRU + attention", 2, [100.0, 90.0, 120.0]),
        )
    ]
    scaling = tables_of(section(report_of(results, tmp_path), "Speed of training"))[1]
    assert cells_of(scaling[2]) == ["64", "1", "float32", "1.80 (1.50 to 2.00)", "1.00 (0.90 to 1.20)"]


def test_the_kernels_stand_beside_table_1(tmp_path: Path):
    results = only("speed")
    kernels = results["speed"]["kernels"]
    kernels["LSTM + attention"] |= {"calls_per_token": 0.06, "calls_per_token_padded": 537.9}
    rows = tables_of(section(report_of(results, tmp_path), "Speed of training"))[-1]
    found = {cells_of(row)[0]: cells_of(row)[1:5] for row in rows[2:]}
    assert found["Transformer"] == ["self-attention", "1", "all tokens at once", "all tokens at once"]
    fused, not_fused = "fused: one call reads all tokens", "not fused: 538 calls for each token"
    assert found["LSTM + attention"] == ["recurrent", "n", fused, not_fused]


def test_settings_that_were_left_out_are_named(tmp_path: Path):
    results = only("speed")
    results["speed"]["left_out"] = ["training chooses float32 by itself, which is measured already"]
    assert "Left out: training chooses float32 by itself, which is measured already." in report_of(results, tmp_path)


def test_the_quality_section_says_where_the_curves_cross(whole_report: Path):
    report = section(whole_report.read_text(encoding="utf-8"), "Quality")
    for task in example_results()["quality"]:
        assert crossing_table(task) in report


def test_the_speed_section_has_the_papers_table_1(whole_report: Path):
    report = section(whole_report.read_text(encoding="utf-8"), "Speed of training")
    assert "| self-attention | O(n² · d) | O(1) | O(1) |" in report
    assert "| recurrent | O(n · d²) | O(n) | O(n) |" in report


def test_models_may_differ_from_part_to_part(tmp_path: Path):
    results = only("speed") | {"quality": example_results()["quality"]}
    results["speed"]["parameters"]["GRU only here"] = 777
    rows = results["speed"]["rows"]
    rows += [row | {"model": "GRU only here"} for row in rows if row["model"] == "Transformer"]
    report = report_of(results, tmp_path)
    assert "| GRU only here | 777 | – | – |" in section(report, "Models")
    assert "GRU only here" not in section(report, "Quality")


def test_the_transformer_comes_first_in_any_order_of_the_models(tmp_path: Path):
    results = only("speed")
    results["speed"]["parameters"] = dict(reversed(results["speed"]["parameters"].items()))
    report = report_of(results, tmp_path)
    _, _, *rows = tables_of(section(report, "Models"))[0]
    assert [cells_of(row)[0] for row in rows] == ["Transformer", *MODELS[:0:-1]]


def test_markup_in_outputs_is_escaped(tmp_path: Path):
    results = only("quality")
    wild = "a | b <img src=x> [link](http://x) **bold** `code` &lt; _x_ $m$ ~~s~~ \\"
    for result in results["quality"][0]["budgets"]:
        result["examples"][0]["outputs"]["Transformer"] = f"{wild}\n# heading"
    report = report_of(results, tmp_path)
    (shown,) = {line for line in report.splitlines() if "img src" in line}
    assert [unescape(cell) for cell in cells_of(shown)] == ["Transformer", f"{wild} # heading"]
    assert not re.search(r"(?<!\\)[<\[*`$~]", shown)


def test_escape_keeps_names_legible():
    assert escape("vanilla_transformer 3.5 (a-b)") == "vanilla_transformer 3.5 (a-b)"


def test_a_table_has_header_rule_and_rows():
    assert table(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"
