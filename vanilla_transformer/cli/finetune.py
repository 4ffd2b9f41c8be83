# SPDX-License-Identifier: Apache-2.0
"""Fine-tune a model folder as a YAML file says, whole or by a LoRA adapter; the same command resumes.

    vanilla-transformer finetune my.yaml model=runs/my/model data.train.path=my.tsv
    vanilla-transformer finetune my.yaml "lora={r: 8, target_modules: [q_proj, v_proj]}"

The shipped config finetune is one to begin with.

On several processes: accelerate launch scripts/finetune.py my.yaml
"""

import argparse

from vanilla_transformer.console.arguments import add_config_arguments, config_and_overrides

EXTRA, NEEDS = "training", ("accelerate", "datasets", "evaluate", "sacrebleu", "yaml")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser, "YAML file, or the name of a shipped one, such as finetune")


def run(arguments: argparse.Namespace) -> int:
    file, overrides = config_and_overrides(arguments)

    import logging

    from transformers.utils.logging import disable_progress_bar

    from vanilla_transformer.distributed.processes import process_state
    from vanilla_transformer.hub.run_facts import write_card_of_finetuning
    from vanilla_transformer.training.finetuning import finetune, load_finetuning_config

    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("vanilla_transformer").setLevel(logging.INFO)
    disable_progress_bar()  # of reading and writing weights, which would tear the run's own bar
    folder, scores = finetune(load_finetuning_config(file, overrides))
    if process_state().is_main_process:
        write_card_of_finetuning(folder.parent)
        if scores:
            print(
                f"validation: BLEU {scores['eval_bleu']:.2f}, chrF {scores['eval_chrf']:.2f}, "
                f"loss {scores['eval_loss']:.4f} per token"
            )
        print(f"finished model: {folder}")
    return 0
