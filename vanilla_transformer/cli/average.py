# SPDX-License-Identifier: Apache-2.0
"""Average the weights of checkpoints into one model folder (section 6.1 of the paper).

vanilla-transformer average runs/multi30k --last 5 --output runs/multi30k/averaged
vanilla-transformer average checkpoint-a checkpoint-b --output averaged
"""

import argparse

from vanilla_transformer.console.arguments import UsageError, positive_int
from vanilla_transformer.console.outputs import check_output_folder

EXTRA, NEEDS = "training", ("accelerate", "datasets", "sacrebleu", "yaml")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folders", nargs="+", help="one run's folder (with --last), or model folders")
    parser.add_argument("--last", type=positive_int, metavar="K", help="the newest K checkpoints of the run")
    parser.add_argument("--output", required=True, help="folder to write")


def run(arguments: argparse.Namespace) -> int:
    from pathlib import Path

    from vanilla_transformer.data.tokenizer import load_tokenizer
    from vanilla_transformer.hub.model_card import write_license
    from vanilla_transformer.hub.run_facts import write_card_of_average
    from vanilla_transformer.training.atomic_folder import atomic_folder
    from vanilla_transformer.training.averaging import average_checkpoints
    from vanilla_transformer.training.checkpoint import list_checkpoints
    from vanilla_transformer.training.manifest import find_damage

    output = Path(arguments.output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"--output {output} exists and is not empty; choose another folder")
    check_output_folder(output, "--output")
    folders = [Path(folder) for folder in arguments.folders]
    run_folder = folders[0]
    if arguments.last is not None:
        if len(folders) != 1:
            raise UsageError(f"--last takes one run's folder, {len(folders)} were given")
        folders = list_checkpoints(run_folder / "checkpoints")[-arguments.last :]
        if len(folders) < arguments.last:
            raise ValueError(f"{run_folder} has {len(folders)} checkpoints, --last asks for {arguments.last}")
        for path in folders:
            if damage := find_damage(path):
                raise ValueError(f"checkpoint {path} is damaged: {damage}; name whole ones instead of --last")
    model, tokenizer = average_checkpoints(folders), load_tokenizer(folders[-1])
    card = None
    with atomic_folder(output) as unfinished:
        model.save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
        write_license(unfinished)
        if arguments.last is not None:
            name = output.resolve().name
            card = write_card_of_average(unfinished, run=run_folder, checkpoints=folders, name=name)
    print(f"mean of {len(folders)} checkpoints ({folders[0].name} … {folders[-1].name}): {output}")
    if card is None:
        print(
            "It has no model card: no results.json of a run that ended with these checkpoints (--last) says how it was "
            f"trained. Write {output / 'README.md'} before you publish it."
        )
    return 0
