# SPDX-License-Identifier: Apache-2.0
"""Text files that exist complete or not at all."""

from pathlib import Path


def write_atomically(path: Path, text: str) -> None:
    """Write to a hidden file beside the path, then rename it."""
    unfinished = path.with_name(f".{path.name}")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)
