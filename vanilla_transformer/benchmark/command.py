# SPDX-License-Identifier: Apache-2.0
"""The command line of scripts/benchmark.py."""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

from transformers.utils.logging import disable_progress_bar

from vanilla_transformer.benchmark.configuration import load_benchmark_config
from vanilla_transformer.benchmark.decode import benchmark_decoding
from vanilla_transformer.benchmark.exactness import check_exactness
from vanilla_transformer.benchmark.report import report
from vanilla_transformer.native.engine import ENGINES

DEFAULT = "configs/benchmark_decode.yaml"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one benchmark: the report on stdout, progress on stderr.

    Returns:
        The exit status: 0, or 1 after an error that the user can mend (one line on stderr). Bars that are not met are
        no error.
    """
    parser = argparse.ArgumentParser(description="How fast models decode, beside the peers; and how exactly.")
    commands = parser.add_subparsers(dest="command", required=True)
    decode = commands.add_parser("decode", help="speed beside MarianMT and CTranslate2")
    decode.add_argument("config", nargs="?", default=DEFAULT, help="YAML file (default: %(default)s)")
    decode.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the file's values")
    decode.set_defaults(run=_decode)
    exact = commands.add_parser("exact", help="the fast decoding against transformers' own and teacher forcing")
    exact.add_argument("model", help="folder of a trained model")
    exact.add_argument("source", help="text file, plain or .gz")
    exact.add_argument("--sentences", type=int, default=1000, metavar="N", help="the first N (%(default)s)")
    exact.add_argument("--engine", choices=ENGINES, default="auto", help="what decodes (%(default)s)")
    exact.set_defaults(run=_exact)
    arguments = parser.parse_args(argv)
    disable_progress_bar()  # of reading weights
    start = time.perf_counter()

    def show(line: str) -> None:
        print(f"{(time.perf_counter() - start) / 60:5.1f} min  {line}", file=sys.stderr, flush=True)

    try:
        arguments.run(arguments, show)
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        print(f"benchmark: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


def _decode(arguments: argparse.Namespace, show: Callable[[str], None]) -> None:
    file, overrides = arguments.config, arguments.overrides
    if "=" in file and not Path(file).exists():  # an override where the file may stand
        file, overrides = DEFAULT, [file, *overrides]
    config = load_benchmark_config(file, overrides)
    print(report(benchmark_decoding(config, show)))
    print(f"\nAll figures: {config.output}")


def _exact(arguments: argparse.Namespace, show: Callable[[str], None]) -> None:
    from vanilla_transformer.data.corpus import read_lines  # not needed by the other, which runs without datasets
    from vanilla_transformer.data.tokenizer import load_tokenizer
    from vanilla_transformer.evaluation.model_folder import load_model_folder

    if arguments.sentences < 1:
        raise ValueError(f"--sentences {arguments.sentences} must be at least 1")
    lines = list(islice(read_lines(arguments.source), arguments.sentences))
    model, tokenizer = load_model_folder(arguments.model), load_tokenizer(arguments.model)
    print(json.dumps(check_exactness(model, tokenizer, lines, show, arguments.engine), indent=2))
