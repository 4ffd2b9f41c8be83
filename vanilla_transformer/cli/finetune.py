# SPDX-License-Identifier: Apache-2.0
"""Fine-tune a model folder as a YAML file says, whole or by a LoRA adapter; the same command resumes.

    vanilla-transformer finetune my.yaml model=runs/my/model data.train.path=my.tsv
    vanilla-transformer finetune my.yaml "lora={r: 8, target_modules: [q_proj, v_proj]}"

configs/finetune.yaml is one to begin with.

On several processes: accelerate launch scripts/finetune.py my.yaml
"""

import argparse

from vanilla_transformer.console.arguments import add_config_arguments, config_and_overrides

EXTRA, NEEDS = "training", ("accelerate", "datasets", "evaluate", "sacrebleu", "yaml")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser, "YAML file, see configs/finetune.yaml")


def run(arguments: argparse.Namespace) -> int:
    file, overrides = config_and_overrides(arguments)

    import logging

    from transformers.utils.logging import disable_progress_bar

    from vanilla_transformer.hub.run_facts import write_card_of_finetuning
    from vanilla_transformer.training.export import MODEL
    from vanilla_transformer.training.finetuning import finetune
    from vanilla_transformer.training.finetuning_config import load_finetuning_config

    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("vanilla_transformer").setLevel(logging.INFO)
    disable_progress_bar()  # of reading and writing weights, which would tear the run's own bar
    run, validation = finetune(load_finetuning_config(file, overrides))
    if run.state.accelerator.is_main_process:
        write_card_of_finetuning(run.output_dir)
        if validation is not None:
            print(
                f"validation: BLEU {validation.bleu:.2f}, chrF {validation.chrf:.2f}, "
                f"loss {validation.loss:.4f} per token"
            )
        print(f"finished model: {run.output_dir / MODEL}")
    return 0
