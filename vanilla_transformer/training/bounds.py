# SPDX-License-Identifier: Apache-2.0
"""Fields of strict dataclasses that declare their own bounds; `build_section` tells the user the section and key."""

import math
from collections.abc import Callable
from typing import Any

from huggingface_hub.dataclasses import validated_field

Number = int | float


def at_least(bound: Number, **options: Any) -> Any:
    """A field for a number, for None, or for a list of numbers that is not empty.

    Args:
        options: arguments of `dataclasses.field`, such as `default`.
    """
    return _bounded(lambda number: number >= bound, f"at least {bound}", options)


def positive(**options: Any) -> Any:
    """A field as `at_least`, for finite numbers greater than 0."""
    return _bounded(lambda number: 0 < number < math.inf, "greater than 0, and finite", options)


def probability(**options: Any) -> Any:
    """A field as `at_least`, for numbers in [0, 1)."""
    return _bounded(lambda number: 0 <= number < 1, "at least 0 and less than 1", options)


def finite(**options: Any) -> Any:
    """A field as `at_least`, for numbers that are neither infinite nor NaN."""
    return _bounded(math.isfinite, "a finite number", options)


def _bounded(holds: Callable[[Number], bool], words: str, options: dict[str, Any]) -> Any:
    def check(value: Number | list[Number] | None) -> None:
        if isinstance(value, list):
            if not value or not all(holds(number) for number in value):
                raise ValueError(f"must be a list of numbers, each {words}")
        elif value is not None and not holds(value):
            raise ValueError(f"must be {words}")

    return validated_field(check, **options)
