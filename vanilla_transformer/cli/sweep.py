# SPDX-License-Identifier: Apache-2.0
"""Tune a run, or several with the same effort, by successive halving on validation data; the same command resumes.

    vanilla-transformer sweep sweep_quickstart
    vanilla-transformer sweep sweep data.train.path=my.tsv data.validation.path=mine.tsv minutes=30
    vanilla-transformer sweep my.yaml trials=54

Writes report.md with tables and plots, trials.json, and a folder for each trial.
"""

import argparse
import sys

from vanilla_transformer.console.arguments import add_config_arguments, config_and_overrides

EXTRA = "tuning"
NEEDS = ("accelerate", "datasets", "matplotlib", "optuna", "sacrebleu", "yaml")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser, "YAML file, or the name of a shipped one: sweep, sweep_quickstart")


def run(arguments: argparse.Namespace) -> int:
    import time
    from pathlib import Path
    from typing import Any

    from vanilla_transformer.tuning.configuration import load_sweep_config
    from vanilla_transformer.tuning.report import conclusion, score_text
    from vanilla_transformer.tuning.sweep import sweep
    from vanilla_transformer.tuning.trial import METRICS

    config = load_sweep_config(*config_and_overrides(arguments))
    print(config.plan(), file=sys.stderr)
    start = time.perf_counter()

    def show(name: str, trial: dict[str, Any]) -> None:
        minutes, outcome = (time.perf_counter() - start) / 60, trial["rungs"][-1]
        words = (
            score_text(METRICS[config.metric][1], outcome["score"]) if outcome["error"] is None else outcome["error"]
        )
        rung = f"rung {len(trial['rungs'])} of {config.rungs}"
        print(f"{minutes:6.1f} min  {name}, trial {trial['number']:3}, {rung}: {words}", file=sys.stderr)

    results = sweep(config, show)
    for name, found in results["runs"].items():
        print(f"{name}: {conclusion(results, found)}", *found["overrides"], sep="\n  ")
    print(f"report: {Path(config.output_dir) / 'report.md'}")
    return 0
