# SPDX-License-Identifier: Apache-2.0
"""The command line of scripts/benchmark.py."""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from transformers.utils.logging import disable_progress_bar

from vanilla_transformer.benchmark.configuration import load_benchmark_config
from vanilla_transformer.benchmark.decode import benchmark_decoding
from vanilla_transformer.benchmark.report import report

DEFAULT = "configs/benchmark_decode.yaml"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one benchmark: the report on stdout, progress on stderr.

    Returns:
        The exit status: 0, or 1 after an error that the user can mend (one line on stderr). Bars that are not met are
        no error.
    """
    parser = argparse.ArgumentParser(description="How fast models decode, beside transformers and CTranslate2.")
    parser.add_argument("what", choices=["decode"])
    parser.add_argument("config", nargs="?", default=DEFAULT, help="YAML file (default: %(default)s)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the file's values")
    arguments = parser.parse_args(argv)
    file, overrides = arguments.config, arguments.overrides
    if "=" in file and not Path(file).exists():  # an override where the file may stand
        file, overrides = DEFAULT, [file, *overrides]
    disable_progress_bar()  # of reading weights
    start = time.perf_counter()

    def show(line: str) -> None:
        print(f"{(time.perf_counter() - start) / 60:5.1f} min  {line}", file=sys.stderr, flush=True)

    try:
        config = load_benchmark_config(file, overrides)
        results = benchmark_decoding(config, show)
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        print(f"benchmark: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    print(report(results))
    print(f"\nAll figures: {config.output}")
    return 0
