# SPDX-License-Identifier: Apache-2.0
"""The command `vanilla-transformer`. Each subcommand is a module with `add_arguments(parser)` and `run(arguments)`.

Modules here import torch, transformers and the rest of the package inside `run`, so that `--help` answers at once.
"""

import argparse
import io
import os
import sys
from collections.abc import Sequence

from vanilla_transformer.cli import average, compare, evaluate, finetune, plot, pull, push, quickstart, train, translate
from vanilla_transformer.cli.usage import UsageError

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
    arguments = _parser().parse_args(argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that lacks a character must not end hours of training
            stream.reconfigure(errors="replace")
    try:
        return arguments.run(arguments) or 0
    except BrokenPipeError:  # whoever read the output has had enough; Python would complain once more at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # as a shell reports SIGPIPE
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        if arguments.debug:
            raise
        message = " ".join(str(error).split()) or type(error).__name__
        print(f"vanilla-transformer {arguments.command}: error: {message}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    except KeyboardInterrupt:
        print(f"vanilla-transformer {arguments.command}: interrupted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
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
        subparser.set_defaults(run=module.run)
    return parser
