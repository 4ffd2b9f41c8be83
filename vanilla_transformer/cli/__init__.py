# SPDX-License-Identifier: Apache-2.0
"""The command `vanilla-transformer`. Each subcommand is a module with `add_arguments(parser)` and `run(arguments)`.

`EXTRA` of a module is the extra of pyproject.toml that its subcommand needs; `NEEDS` are the modules that it brings and
without which the subcommand would fail, perhaps after hours of work. Modules here import torch, transformers and the
rest of the package inside `run`, so that `--help` answers at once.
"""

import argparse
from collections.abc import Sequence

from vanilla_transformer.cli import average, compare, evaluate, finetune, plot, pull, push, quickstart, train, translate
from vanilla_transformer.console.arguments import ArgumentParser
from vanilla_transformer.console.extras import check_installed
from vanilla_transformer.console.running import run_program
from vanilla_transformer.console.streams import prepare_streams

SUBCOMMANDS = {
    "train": train,
    "finetune": finetune,
    "translate": translate,
    "evaluate": evaluate,
    "average": average,
    "push": push,
    "pull": pull,
    "compare": compare,
    "plot": plot,
    "quickstart": quickstart,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand.

    Returns:
        The exit status: 0, or 1 after an error that the user can mend (one line on stderr), or 2 after wrong usage.
    """
    prepare_streams()
    arguments = _parser().parse_args(argv)
    module = SUBCOMMANDS[arguments.command]

    def work() -> int:
        check_installed(arguments.command, module.NEEDS, module.EXTRA)
        return module.run(arguments)

    program = f"vanilla-transformer {arguments.command}"
    return run_program(work, program, extra=module.EXTRA, debug=arguments.debug)


def _parser() -> argparse.ArgumentParser:
    parser = ArgumentParser(
        prog="vanilla-transformer",
        description='The Transformer of "Attention Is All You Need": from parallel text to translations.',
    )
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
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
