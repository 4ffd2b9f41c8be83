# SPDX-License-Identifier: Apache-2.0
"""The command line of scripts/benchmark.py."""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from itertools import islice

from vanilla_transformer.console.arguments import (
    ArgumentParser,
    add_config_arguments,
    config_and_overrides,
    positive_int,
)
from vanilla_transformer.console.outputs import check_output_file
from vanilla_transformer.console.running import run_program
from vanilla_transformer.console.streams import prepare_streams

DEFAULT, DEFAULT_OF_TRAINING = "benchmark_decode", "benchmark_train"
# Fields of the configuration that `bergamot` uses: it measures float32 and int8 on a CPU, and writes no file.
BERGAMOT_FIELDS = ("models", "sizes", "batch_sizes", "beams", "source_tokens", "target_tokens", "timing")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one benchmark: the report on stdout, progress on stderr.

    Returns:
        The exit status: 0, also where thresholds are not met; 1 after an error that the user can mend (one line on
        stderr).
    """
    prepare_streams()
    parser = ArgumentParser(
        description="Speed of decoding and training beside the baselines, and whether decoding is exact."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    decode = commands.add_parser("decode", help="speed beside MarianMT and CTranslate2")
    add_config_arguments(decode, "YAML file (default: %(default)s)", DEFAULT)
    decode.set_defaults(run=_decode)
    train = commands.add_parser("train", help="whole updates beside MarianMT, nn.Transformer and x-transformers")
    add_config_arguments(train, "YAML file (default: %(default)s)", DEFAULT_OF_TRAINING)
    train.set_defaults(run=_train)
    bergamot = commands.add_parser("bergamot", help="speed beside Marian's own engine, as PyPI's bergamot has it")
    bergamot.add_argument("python", help="program of a Python, 3.8 to 3.10, with bergamot")
    add_config_arguments(bergamot, "YAML file (default: %(default)s)", DEFAULT)
    bergamot.set_defaults(run=_bergamot)
    exact = commands.add_parser("exact", help="fast decoding against transformers' search and teacher forcing")
    exact.add_argument("model", help="folder of a trained model")
    exact.add_argument("source", help="text file, plain or .gz")
    exact.add_argument("--sentences", type=positive_int, default=1000, metavar="N", help="the first N (%(default)s)")
    exact.add_argument(
        "--engine", choices=["auto", "native", "torch"], default="auto", help="of the fast decoder (%(default)s)"
    )
    exact.set_defaults(run=_exact)
    arguments = parser.parse_args(argv)
    start = time.perf_counter()

    def show(line: str) -> None:
        print(f"{(time.perf_counter() - start) / 60:5.1f} min  {line}", file=sys.stderr, flush=True)

    def work() -> None:
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()  # loading weights shows one
        arguments.run(arguments, show)

    return run_program(work, "benchmark", extra="benchmark")


def _decode(arguments: argparse.Namespace, show: Callable[[str], None]) -> None:
    from vanilla_transformer.benchmark.configuration import load_benchmark_config
    from vanilla_transformer.benchmark.decode import benchmark_decoding
    from vanilla_transformer.benchmark.report import report

    config = load_benchmark_config(*config_and_overrides(arguments, DEFAULT))
    check_output_file(config.output, "output", makes_folders=True)
    print(report(benchmark_decoding(config, show)))
    print(f"\nAll figures: {config.output}")


def _train(arguments: argparse.Namespace, show: Callable[[str], None]) -> None:
    from vanilla_transformer.benchmark.train import benchmark_training
    from vanilla_transformer.benchmark.train_configuration import load_train_benchmark
    from vanilla_transformer.benchmark.train_report import train_report

    config = load_train_benchmark(*config_and_overrides(arguments, DEFAULT_OF_TRAINING))
    check_output_file(config.output, "output", makes_folders=True)
    print(train_report(benchmark_training(config, show)))
    print(f"\nAll figures: {config.output}")


def _bergamot(arguments: argparse.Namespace, show: Callable[[str], None]) -> None:
    from vanilla_transformer.benchmark.configuration import load_benchmark_config
    from vanilla_transformer.benchmark.marian_engine import benchmark_marian_engine

    file, overrides = config_and_overrides(arguments, DEFAULT)
    for override in overrides:
        if override.partition("=")[0].partition(".")[0] not in BERGAMOT_FIELDS:
            raise ValueError(f"{override}: `bergamot` has no use for it; it reads {', '.join(BERGAMOT_FIELDS)}")
    print(benchmark_marian_engine(load_benchmark_config(file, overrides), arguments.python, show))


def _exact(arguments: argparse.Namespace, show: Callable[[str], None]) -> None:
    from vanilla_transformer.benchmark.exactness import check_exactness
    from vanilla_transformer.data.corpus import read_lines
    from vanilla_transformer.data.tokenizer import load_tokenizer
    from vanilla_transformer.inference.model_folder import load_model_folder

    lines = list(islice(read_lines(arguments.source), arguments.sentences))
    model, tokenizer = load_model_folder(arguments.model), load_tokenizer(arguments.model)
    print(json.dumps(check_exactness(model, tokenizer, lines, show, arguments.engine), indent=2))
