# SPDX-License-Identifier: Apache-2.0
"""The versions of transformers that this code runs with; imported first, it refuses the others in one line."""

import re

import transformers

MINIMUM, BELOW = "5.24", "6"  # as in pyproject.toml


def check_transformers_version(version: str) -> None:
    """Raises ImportError for a version, such as "5.23.0", that is not among them."""
    found, minimum, below = (_release(one) for one in (version, MINIMUM, BELOW))
    if not minimum <= found < below:
        raise ImportError(
            f"vanilla_transformer needs transformers >= {MINIMUM} and < {BELOW}, this is {version}: "
            f"pip install -U 'transformers>={MINIMUM},<{BELOW}'"
        )


def _release(version: str) -> tuple[int, int]:
    """The first two numbers; a pre-release counts as what it comes before."""
    numbers = [int(number) for number in re.findall(r"\d+", version)[:2]]
    return numbers[0], numbers[1] if len(numbers) > 1 else 0


check_transformers_version(transformers.__version__)
