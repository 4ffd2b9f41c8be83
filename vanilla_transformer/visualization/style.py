# SPDX-License-Identifier: Apache-2.0
"""What all pictures share: sizes, colours, empty figures, and how they are written to files.

They are sized to stay legible at half their pixels, about the width of a page on GitHub.
"""

import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image

DOTS_PER_INCH = 150
FONT_SIZE = 16  # points: 16 pixels at half size
SUFFIXES = (".png", ".svg")
MARGIN = 0.2  # inches around what is drawn
GIVEN = {"color": "0.35", "linewidth": 2.5, "zorder": 1}  # lines that are no measurement

# Petroff (2021), "Accessible Color Sequences for Data Visualization": told apart with the common colour blindnesses.
COLOURS = [to_hex(colour) for colour in matplotlib.color_sequences["petroff10"]]
MARKERS = ["o", "s", "^", "D", "v", "P", "X", "<", ">", "*"]


def empty_figure(
    rows: int, columns: int, inches: tuple[float, float], sharey: bool = False
) -> tuple[Figure, Sequence[Axes]]:
    """An empty figure, made without pyplot, which keeps every figure for ever, and its panels."""
    figure = Figure(figsize=inches, dpi=DOTS_PER_INCH, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharey=sharey).flatten().tolist()
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="0.9")
        axes.set_axisbelow(True)
        axes.tick_params(labelsize=FONT_SIZE)
    return figure, panels


def check_suffix(path: str | Path, allowed: Sequence[str] = SUFFIXES) -> Path:
    """The path, if its suffix names a kind of file that can be written.

    Raises:
        ValueError: it does not.
    """
    path = Path(path)
    if path.suffix.lower() not in allowed:
        raise ValueError(f"output {path}: its suffix {path.suffix!r} must be one of {', '.join(allowed)}")
    return path


@contextmanager
def without_missing_glyphs() -> Iterator[None]:
    """Without matplotlib's line for each character that no font has: `fonts_for` has named them in one."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font")
        yield


def save_figure(figure: Figure, path: str | Path) -> tuple[int, int]:
    """Write a figure as PNG or SVG, by the suffix.

    Returns:
        Width and height in pixels, of an SVG in points.

    Raises:
        ValueError: another suffix.
        OSError: it cannot be written there.
    """
    path = check_suffix(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Of zlib's ways the one for runs of equal bytes: a sheet of many panels is written in 0.6 of the time.
    options: dict[str, Any] = {"pil_kwargs": {"compress_type": zlib.Z_RLE}} if path.suffix.lower() == ".png" else {}
    with without_missing_glyphs():
        figure.savefig(path, **options)
    return _size(path)


def _size(path: Path) -> tuple[int, int]:
    if path.suffix.lower() == ".png":
        with Image.open(path) as image:
            return image.size
    attributes = ElementTree.parse(path).getroot().attrib
    return round(float(attributes["width"].removesuffix("pt"))), round(float(attributes["height"].removesuffix("pt")))
