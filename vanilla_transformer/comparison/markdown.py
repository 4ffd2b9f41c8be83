# SPDX-License-Identifier: Apache-2.0
"""Tables, text and ranges in GitHub's Markdown."""

import re
from collections.abc import Callable, Sequence

MISSING = "–"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose cells are Markdown already."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows))


def escape(text: str) -> str:
    """Plain text as one line of Markdown: the output of a model cannot act as markup.

    Only characters that can act as markup are escaped, so that names stay legible. An underscore within a word is no
    emphasis.
    """
    text = re.sub(r"[\\`*\[\]<>|~$]", r"\\\g<0>", " ".join(text.split()))
    text = re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", text)
    return re.sub(r"&(?=#?\w+;)", r"\\&", text)


def with_range(value: float, low: float, high: float, spec: str = ".1f", unit: str = "") -> str:
    """A figure with its range in parentheses, such as 92.5% (90.0 to 95.0)."""
    return f"{value:{spec}}{unit} ({low:{spec}} to {high:{spec}})"


def with_extremes(
    values: Sequence[float], average: Callable[[Sequence[float]], float], spec: str = ".1f", unit: str = ""
) -> str:
    """The average of the values with their lowest and highest, as `with_range`."""
    return with_range(average(values), min(values), max(values), spec, unit)


def number(value: float | None, spec: str) -> str:
    """A number, or a dash for a missing one."""
    return MISSING if value is None else f"{value:{spec}}"


def plural(count: int, noun: str) -> str:
    """The count and the noun, such as 1 seed or 3 seeds."""
    return f"{count} {noun}{'s' * (count != 1)}"


def listing(items: Sequence[int | str]) -> str:
    """Such as 64, 128 and 1,024."""
    *first, last = (f"{item:,}" if isinstance(item, int) else item for item in items)
    return f"{', '.join(first)} and {last}" if first else last
