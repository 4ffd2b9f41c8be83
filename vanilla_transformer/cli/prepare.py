# SPDX-License-Identifier: Apache-2.0
"""Filter raw parallel text into corpora that are ready to train on, with a report; the same command resumes.

    vanilla-transformer prepare prepare corpora.mine.source=raw.en corpora.mine.target=raw.de
    vanilla-transformer prepare my.yaml held_out.test.source=test.en held_out.test.target=test.de write_dropped=true

Writes NAME.source and NAME.target for each corpus, for `train data.train.source=… data.train.target=…`; report.md with
counts and samples for every reason, and its plot; with write_dropped=true NAME.dropped.jsonl.
"""

import argparse

from vanilla_transformer.console.arguments import add_config_arguments, config_and_overrides

EXTRA = "preparation"
NEEDS = ("datasets", "matplotlib", "py3langid", "rensa", "tqdm", "yaml")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser, "YAML file, or the name of a shipped one: prepare")


def run(arguments: argparse.Namespace) -> int:
    from pathlib import Path

    from tqdm import tqdm

    from vanilla_transformer.preparation.configuration import load_prepare_config
    from vanilla_transformer.preparation.prepare import REPORT, output_corpus, prepare

    config = load_prepare_config(*config_and_overrides(arguments))
    with tqdm(unit=" pairs", unit_scale=True, disable=None) as bar:  # on a terminal alone

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        results = prepare(config, progress)
    for name, corpus in results["corpora"].items():
        files = output_corpus(config, name)
        print(f"{name}: {corpus['kept']:,} of {corpus['read']:,} pairs kept: {files.source} {files.target}")
    print(f"report: {Path(config.output_dir) / REPORT}")
    return 0
