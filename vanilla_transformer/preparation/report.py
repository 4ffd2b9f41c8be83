# SPDX-License-Identifier: Apache-2.0
"""The report of a preparation: report.md and its plot, computed from the results alone.

The results are one dict: `corpora`, for each name the numbers of pairs `read`, `changed` (by normalisation) and `kept`,
and those `dropped` for each reason; `samples`, for each reason lists of corpus, line, source and target; `lengths`, the
counts of pairs `read` and `kept`, of each side, in bins of `LENGTH_STEP` characters, the last without an end.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vanilla_transformer.comparison.markdown import escape, table
from vanilla_transformer.preparation.filters import REASONS
from vanilla_transformer.visualization.preparation import plot_preparation

LENGTH_STEP, LENGTH_BINS = 10, 51  # up to 500 characters, and longer
SHOWN = 300  # characters of a sample

Results = Mapping[str, Any]


def write_report(results: Results, folder: Path) -> None:
    """Write `folder/report.md` and `folder/filters.png`, over existing ones."""
    plot_preparation(results, LENGTH_STEP).savefig(folder / "filters.png")
    corpora = results["corpora"]
    rows = [_row(reason, [corpus["dropped"][reason] for corpus in corpora.values()], corpora) for reason in REASONS]
    rows += [
        _row(f"**{state}**", [corpus[state] for corpus in corpora.values()], corpora)
        for state in ("kept", "read", "changed")
    ]
    parts = [
        f"# Preparation of {', '.join(map(escape, corpora))}",
        "Pairs by the first filter that drops them; `changed` counts those whose text normalisation changed.",
        table(["reason", *map(escape, corpora)], rows),
        "![Pairs dropped for each reason, and lengths of both sides before and after](filters.png)",
    ]
    for reason, explanation in REASONS.items():
        if samples := results["samples"][reason]:
            header = ["corpus", "line", "source", "target"]
            cells = [
                [escape(name), f"{line:,}", _text(source), _text(target)] for name, line, source, target in samples
            ]
            parts += [f"## {reason}", f"Dropped because {explanation}.", table(header, cells)]
    (folder / "report.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8", newline="\n")


def _row(name: str, counts: list[int], corpora: Results) -> list[str]:
    reads = [corpus["read"] for corpus in corpora.values()]
    return [name, *(f"{count:,} ({count / max(read, 1):.2%})" for count, read in zip(counts, reads, strict=True))]


def _text(text: str) -> str:
    return escape(text if len(text) <= SHOWN else f"{text[:SHOWN]} …")
