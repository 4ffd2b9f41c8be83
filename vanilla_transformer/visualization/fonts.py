# SPDX-License-Identifier: Apache-2.0
"""Fonts for tokens of any script: matplotlib's default, and installed fonts for the characters that it lacks."""

import logging
from collections.abc import Iterable

from matplotlib import font_manager
from matplotlib.ft2font import FT2Font

DEFAULT_FAMILY = "DejaVu Sans"  # comes with matplotlib: Latin, Greek, Cyrillic, much of Arabic and Hebrew
PREFERRED = ("noto", "wqy", "source han", "droid", "unifont")  # in the name of a file: made for whole scripts
MAX_NAMED = 8  # characters in a warning

# First and last character of a script, and the Debian package with a font for it.
PACKAGES = [
    ("\u2e80", "\u9fff", "fonts-noto-cjk"),
    ("\uac00", "\ud7af", "fonts-noto-cjk"),
    ("\uf900", "\uffef", "fonts-noto-cjk"),
    ("\U00020000", "\U0003ffff", "fonts-noto-cjk"),
    ("\U0001f000", "\U0001faff", "fonts-symbola"),
]
DEFAULT_PACKAGE = "fonts-noto-core"

logger = logging.getLogger(__name__)


def fonts_for(texts: Iterable[str]) -> list[str]:
    """Font families that together have every character of the texts, for matplotlib's `fontfamily=`.

    Characters that no installed font has are named in one warning, with the packages to install.
    """
    missing = {character for text in texts for character in text if character.isprintable() and character != " "}
    missing -= _characters(font_manager.findfont(DEFAULT_FAMILY))
    families = [DEFAULT_FAMILY]
    for path in _installed_fonts() if missing else []:
        if found := missing & _characters(path):
            families.append(_register(path))
            missing -= found
        if not missing:
            break
    if missing:
        named = " ".join(sorted(missing)[:MAX_NAMED])
        more = f" and {len(missing) - MAX_NAMED} more" if len(missing) > MAX_NAMED else ""
        packages = " ".join(sorted({_package(character) for character in missing}))
        logger.warning("no installed font has %s%s; on Debian: apt-get install %s", named, more, packages)
    return families


def _installed_fonts() -> list[str]:
    """The font files that are installed now: matplotlib's own list dates from its first start."""
    return sorted(
        font_manager.findSystemFonts(),
        key=lambda path: (not any(name in path.lower() for name in PREFERRED), "regular" not in path.lower(), path),
    )


def _characters(path: str) -> set[str]:
    try:
        return {chr(code) for code in FT2Font(path).get_charmap()}
    except (RuntimeError, OSError):  # FreeType cannot scale it (bitmap emoji), it is damaged, or it is not readable
        return set()


def _register(path: str) -> str:
    """Make a font known to matplotlib; return the name of its family."""
    if path not in {font.fname for font in font_manager.fontManager.ttflist}:
        font_manager.fontManager.addfont(path)
    return FT2Font(path).family_name


def _package(character: str) -> str:
    return next((package for first, last, package in PACKAGES if first <= character <= last), DEFAULT_PACKAGE)
