# SPDX-License-Identifier: Apache-2.0
"""The supported versions of transformers; importing this file refuses any other in one line."""

import re

import transformers

MINIMUM, BELOW = "5.17", "6"  # as in pyproject.toml


def check_transformers_version(version: str) -> None:
    """Raises ImportError for an unsupported version, such as "5.16.1"."""
    if not _major_minor(MINIMUM) <= _major_minor(version) < _major_minor(BELOW):
        raise ImportError(
            f"vanilla_transformer needs transformers >= {MINIMUM} and < {BELOW}, this is {version}: "
            f"pip install -U 'transformers>={MINIMUM},<{BELOW}'; or, once, `vanilla-transformer export FOLDER OUT --to "
            "marian`, which writes a Transformer for every version since 4.40"
        )


def is_at_least(version: str) -> bool:
    """Whether the transformers that runs is of this version or newer; both count without the patch number."""
    return _major_minor(transformers.__version__) >= _major_minor(version)


def _major_minor(version: str) -> tuple[int, ...]:
    """The first two numbers: a pre-release counts as its release."""
    return tuple(int(number) for number in re.findall(r"\d+", f"{version}.0")[:2])


check_transformers_version(transformers.__version__)
