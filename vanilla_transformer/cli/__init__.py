# SPDX-License-Identifier: Apache-2.0
"""The command `vanilla-transformer`. Each subcommand is a module with `add_arguments(parser)` and `run(arguments)`.

A module names in `EXTRA` the extra of pyproject.toml that its subcommand needs, and in `NEEDS` the libraries of that
extra without which the subcommand would fail, perhaps after hours. It imports torch, transformers and the rest of the
package inside `run`, so that `--help` answers at once.
"""

import argparse
import sys
from collections.abc import Sequence

from vanilla_transformer.cli import (
    align,
    average,
    compare,
    evaluate,
    export,
    finetune,
    import_,
    plot,
    prepare,
    pull,
    push,
    quickstart,
    score,
    shortlist,
    sweep,
    synthesize,
    train,
    translate,
)
from vanilla_transformer.console.arguments import ArgumentParser
from vanilla_transformer.console.extras import check_installed
from vanilla_transformer.console.running import run_program
from vanilla_transformer.console.streams import prepare_streams

_MODULES = (
    quickstart,
    prepare,
    train,
    finetune,
    translate,
    evaluate,
    score,
    align,
    shortlist,
    synthesize,
    average,
    import_,
    export,
    push,
    pull,
    compare,
    sweep,
    plot,
)
SUBCOMMANDS = {module.__name__.rpartition(".")[2].rstrip("_"): module for module in _MODULES}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand.

    Returns:
        The exit status: 0, or 1 after an error that the user can mend (one line on stderr), or 2 after wrong usage.
    """
    prepare_streams()
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.command is None:
        parser.print_help(sys.stderr)
        return 2
    module = SUBCOMMANDS[arguments.command]

    def work() -> int:
        check_installed(module.NEEDS)
        return module.run(arguments)

    program = f"vanilla-transformer {arguments.command}"
    return run_program(work, program, extra=module.EXTRA, debug=arguments.debug)


def _parser() -> argparse.ArgumentParser:
    parser = ArgumentParser(
        prog="vanilla-transformer",
        description='The Transformer of "Attention Is All You Need": from parallel text to translations.',
        epilog="Begin with `vanilla-transformer quickstart`. Every COMMAND has examples in its --help.",
    )
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, module in SUBCOMMANDS.items():
        first_line, _, rest = (module.__doc__ or "").partition("\n")
        subparser = subparsers.add_parser(
            name,
            help=first_line,
            description=first_line,
            epilog=rest.strip(),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(subparser)
        subparser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser
