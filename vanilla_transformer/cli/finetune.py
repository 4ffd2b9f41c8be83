# SPDX-License-Identifier: Apache-2.0
"""Fine-tune a model folder as a YAML file says, whole or by a LoRA adapter; the same command resumes.

    vanilla-transformer finetune my.yaml model=runs/my/model data.train.path=my.tsv
    vanilla-transformer finetune my.yaml "lora={r: 8, target_modules: [q_proj, v_proj]}"

The shipped config finetune is one to begin with.

On several processes: accelerate launch scripts/finetune.py my.yaml
"""

import argparse
from pathlib import Path

from vanilla_transformer.console.arguments import add_config_arguments, config_and_overrides

EXTRA, NEEDS = "training", ("accelerate", "datasets", "sacrebleu", "yaml")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser, "YAML file, or the name of a shipped one, such as finetune")


def run(arguments: argparse.Namespace) -> int:
    file, overrides = config_and_overrides(arguments)

    import json

    from vanilla_transformer.cli.train import train_and_describe
    from vanilla_transformer.distributed.processes import process_state
    from vanilla_transformer.training.export import RESULTS
    from vanilla_transformer.training.finetuning import load_finetuning_config

    config = load_finetuning_config(file, overrides)
    train_and_describe(config)
    if process_state().is_main_process:
        results = json.loads((Path(config.training.output_dir) / RESULTS).read_text("utf-8"))
        if validation := results["validation"]:
            print(
                f"validation: BLEU {validation['bleu']:.2f}, chrF {validation['chrf']:.2f}, "
                f"loss {validation['loss']:.4f} per token"
            )
    return 0
