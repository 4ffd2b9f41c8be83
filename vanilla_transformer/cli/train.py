# SPDX-License-Identifier: Apache-2.0
"""Train a model as a YAML file says; the same command resumes.

    vanilla-transformer train small data.train.source=my.en data.train.target=my.de
    vanilla-transformer train my.yaml training.max_minutes=10 data.train.source=my.en

On several processes: accelerate launch scripts/train.py configs/multi30k.yaml
"""

import argparse
from typing import TYPE_CHECKING

from vanilla_transformer.console.arguments import add_config_arguments, config_and_overrides

if TYPE_CHECKING:
    from vanilla_transformer.training.configuration import RunConfig
    from vanilla_transformer.training.finetuning import FineTuningConfig

EXTRA, NEEDS = "training", ("accelerate", "datasets", "sacrebleu", "yaml")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser, "YAML file, or the name of a shipped one, such as small or paper/base")


def run(arguments: argparse.Namespace) -> int:
    file, overrides = config_and_overrides(arguments)

    from vanilla_transformer.training.configuration import load_run_config

    train_and_describe(load_run_config(file, overrides))
    return 0


def train_and_describe(config: "RunConfig | FineTuningConfig") -> None:
    """Train, and write the model card beside the finished model."""
    import logging

    from transformers.utils.logging import disable_progress_bar

    from vanilla_transformer.hub.run_facts import write_card_of_run
    from vanilla_transformer.training.export import MODEL
    from vanilla_transformer.training.loop import train

    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("vanilla_transformer").setLevel(logging.INFO)
    disable_progress_bar()  # of reading and writing weights, which would tear the run's own bar
    run = train(config)
    if run.state.accelerator.is_main_process:
        write_card_of_run(run.output_dir)
        print(f"finished model: {run.output_dir / MODEL}")
