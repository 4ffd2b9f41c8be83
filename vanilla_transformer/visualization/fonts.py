# SPDX-License-Identifier: Apache-2.0
"""Fonts for tokens of any script: matplotlib's own, and for what it lacks those that the machine has."""

import logging
from collections.abc import Iterable

from matplotlib import font_manager
from matplotlib.ft2font import FT2Font

OWN = "DejaVu Sans"  # comes with matplotlib: Latin with all accents, Greek, Cyrillic, much of Arabic and Hebrew
PREFERRED = ("noto", "wqy", "source han", "droid", "unifont")  # in the name of a file: made for whole scripts
NAMED = 8  # characters in a warning

# The package of Debian that has a script, by the first and last of its characters.
REMEDIES = [
    ("\u2e80", "\u9fff", "fonts-noto-cjk"),
    ("\uac00", "\ud7af", "fonts-noto-cjk"),
    ("\uf900", "\uffef", "fonts-noto-cjk"),
    ("\U00020000", "\U0003ffff", "fonts-noto-cjk"),
    ("\U0001f000", "\U0001faff", "fonts-symbola"),
]
OTHERWISE = "fonts-noto-core"

logger = logging.getLogger(__name__)


def fonts_for(texts: Iterable[str]) -> list[str]:
    """Names of font families, for `fontfamily=` of matplotlib, which together have the characters of all texts.

    Where no installed font has one, a warning of one line says so, and what to install.
    """
    lacking = {character for text in texts for character in text if character.isprintable() and character != " "}
    lacking -= _characters_of(font_manager.findfont(OWN))
    families = [OWN]
    for path in _installed() if lacking else []:
        found = lacking & _characters_of(path)
        if found:
            families.append(_family_of(path))
            lacking -= found
        if not lacking:
            break
    if lacking:
        some = " ".join(sorted(lacking)[:NAMED])
        more = f" and {len(lacking) - NAMED} more" if len(lacking) > NAMED else ""
        packages = " ".join(sorted({_remedy(character) for character in lacking}))
        logger.warning("no installed font has %s%s; on Debian: apt-get install %s", some, more, packages)
    return families


def _installed() -> list[str]:
    """Files of the machine's fonts, as they are now: matplotlib's own list is that of its first start."""
    return sorted(
        font_manager.findSystemFonts(),
        key=lambda path: (not any(name in path.lower() for name in PREFERRED), "regular" not in path.lower(), path),
    )


def _characters_of(path: str) -> set[str]:
    try:
        return {chr(code) for code in FT2Font(path).get_charmap()}
    except (RuntimeError, OSError):  # FreeType cannot scale it (pictures of emoji); it is damaged, or not ours to read
        return set()


def _family_of(path: str) -> str:
    """The font's name, known to matplotlib from now on."""
    known = {font.fname: font.name for font in font_manager.fontManager.ttflist}
    if path not in known:
        font_manager.fontManager.addfont(path)
    return FT2Font(path).family_name


def _remedy(character: str) -> str:
    return next((package for first, last, package in REMEDIES if first <= character <= last), OTHERWISE)
