# SPDX-License-Identifier: Apache-2.0
"""Train a model as a YAML file says; the same command resumes.

    vanilla-transformer train configs/multi30k.yaml
    vanilla-transformer train configs/multi30k.yaml training.max_minutes=10 data.train.source=my.en

On several processes: accelerate launch scripts/train.py configs/multi30k.yaml
"""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", help="YAML file, see configs/")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="changes to the file's values")


def run(arguments: argparse.Namespace) -> int:
    from vanilla_transformer.training.configuration import load_run_config

    config = load_run_config(arguments.config, arguments.overrides)  # before torch is imported: errors come at once

    import logging

    from vanilla_transformer.training.loop import train

    from transformers.utils.logging import disable_progress_bar

    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("vanilla_transformer").setLevel(logging.INFO)
    disable_progress_bar()  # of reading and writing weights, which would tear the run's own bar
    folder = train(config)
    print(f"finished model: {folder}")
    return 0
