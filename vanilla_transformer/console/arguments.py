# SPDX-License-Identifier: Apache-2.0
"""A parser that refuses an option given twice, and the arguments of configurations."""

import argparse
from pathlib import Path

from vanilla_transformer.console.shipped_configs import find_config


class ArgumentParser(argparse.ArgumentParser):
    """argparse's, and its subcommands: an option that is given twice is wrong usage, unless it collects values."""

    def parse_known_args(self, args=None, namespace=None):
        self._given: set[str] = set()
        return super().parse_known_args(args, namespace)

    def _get_values(self, action: argparse.Action, arg_strings: list[str]):
        """argparse calls it once for each time that an argument is given."""
        if action.option_strings and not isinstance(action, argparse._AppendAction):
            if action.dest in self._given:
                raise argparse.ArgumentError(action, "given twice; give it once")
            self._given.add(action.dest)
        return super()._get_values(action, arg_strings)  # pyright: ignore[reportAttributeAccessIssue] -- argparse has no public place for it


def add_config_arguments(parser: argparse.ArgumentParser, file: str, default: str | None = None) -> None:
    """A YAML file and changes to it; `file` tells which."""
    parser.add_argument("config", help=file, nargs=None if default is None else "?", default=default)
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="changes to the file's values")


def config_and_overrides(arguments: argparse.Namespace, default: str | None = None) -> tuple[Path, list[str]]:
    """The file and the changes to it; where there is a default, a change may stand in the file's place."""
    file, overrides = arguments.config, arguments.overrides
    if default is not None and "=" in file and not Path(file).exists():
        file, overrides = default, [file, *overrides]
    return find_config(file), overrides
