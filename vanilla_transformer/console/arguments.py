# SPDX-License-Identifier: Apache-2.0
"""A parser that refuses an option given twice, types of arguments, and the arguments of configurations."""

import argparse
import math
from pathlib import Path

from vanilla_transformer.console.shipped_configs import find_config


class UsageError(ValueError):
    """Arguments that do not go together; the program ends with status 2, as for argparse's own errors."""


class ArgumentParser(argparse.ArgumentParser):
    """argparse's, and its subcommands': an option given twice is an error, unless it collects values.

    Positional arguments of any number may stand before options and after them, where argparse alone takes the first.
    """

    def parse_known_args(self, args=None, namespace=None):
        self._given: set[str] = set()
        namespace, rest = super().parse_known_args(args, namespace)
        of_any_number = [each.dest for each in self._actions if not each.option_strings and each.nargs == "*"]
        if of_any_number and not any(argument.startswith("-") for argument in rest):
            setattr(namespace, of_any_number[0], [*getattr(namespace, of_any_number[0]), *rest])
            rest = []
        return namespace, rest

    def _get_values(self, action: argparse.Action, arg_strings: list[str]):
        """argparse calls it once for each time that an argument is given."""
        if action.option_strings and not isinstance(action, argparse._AppendAction):
            if action.dest in self._given:
                raise argparse.ArgumentError(action, "given twice; give it once")
            self._given.add(action.dest)
        return super()._get_values(action, arg_strings)  # pyright: ignore[reportAttributeAccessIssue] -- argparse has no public place for it


def positive_int(text: str) -> int:
    """An argparse type: an integer of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} must be at least 1")
    return value


def finite_float(text: str) -> float:
    """An argparse type: a number, neither infinite nor NaN."""
    value = float(text)
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text} must be a finite number")
    return value


def finite_floats(text: str) -> list[float]:
    """An argparse type: numbers with commas between them."""
    return [finite_float(part) for part in text.split(",")]


def add_config_arguments(parser: argparse.ArgumentParser, help: str, default: str | None = None) -> None:
    """A YAML file, which `help` describes, and changes to its values."""
    parser.add_argument("config", help=help, nargs=None if default is None else "?", default=default)
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="changes to the file's values")


def config_and_overrides(arguments: argparse.Namespace, default: str | None = None) -> tuple[Path, list[str]]:
    """The file and the changes; where there is a default file, the first argument may be a change."""
    file, overrides = arguments.config, arguments.overrides
    if default is not None and "=" in file and not Path(file).exists():
        file, overrides = default, [file, *overrides]
    return find_config(file), overrides
