# SPDX-License-Identifier: Apache-2.0
"""Tables and plain text in GitHub's Markdown."""

import re
from collections.abc import Sequence


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The cells are Markdown already."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows))


def escape(text: str) -> str:
    """Plain text as Markdown within a line or a table's cell: what a model wrote is shown, not obeyed.

    Only what can act as markup is escaped, so that names stay legible. An underscore within a word is no emphasis.
    """
    text = re.sub(r"[\\`*\[\]<>|~$]", r"\\\g<0>", " ".join(text.split()))
    text = re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", text)
    return re.sub(r"&(?=#?\w+;)", r"\\&", text)


def cut(text: str, longest: int = 200) -> str:
    """At most so many characters: a model that has learnt little repeats itself without end."""
    return text if len(text) <= longest else f"{text[:longest]} …"
