# SPDX-License-Identifier: Apache-2.0
"""Fonts for tokens of any script: matplotlib's default, and installed fonts for the characters that it lacks."""

import logging
import unicodedata
from collections.abc import Iterable

from matplotlib import font_manager
from matplotlib.ft2font import FT2Font

DEFAULT_FAMILY = "DejaVu Sans"  # comes with matplotlib: Latin, Greek, Cyrillic, much of Arabic and Hebrew
PREFERRED = ("noto", "wqy", "source han", "droid", "unifont")  # in the name of a file: made for whole scripts
MAX_NAMED = 8  # characters in a warning

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
            if path not in {font.fname for font in font_manager.fontManager.ttflist}:
                font_manager.fontManager.addfont(path)
            families.append(FT2Font(path).family_name)
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


def _package(character: str) -> str:
    """The Debian package with a font for a character."""
    if "\U0001f000" <= character <= "\U0001faff":
        return "fonts-symbola"
    is_of_east_asia = unicodedata.east_asian_width(character) in "WFH"  # wide, or a full or half width of its own
    return "fonts-noto-cjk" if is_of_east_asia else "fonts-noto-core"
