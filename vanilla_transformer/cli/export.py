# SPDX-License-Identifier: Apache-2.0
"""Write a model folder for another runtime: transformers' own MarianMT, CTranslate2 or ONNX.

    vanilla-transformer export runs/multi30k/model runs/multi30k/marian --to marian

The folder for MarianMT opens in transformers 4.40 and every later version, without this package and remote code.
A model that a runtime cannot have is refused, with the reason.
"""

import argparse

from vanilla_transformer.console.extras import check_installed
from vanilla_transformer.console.outputs import check_output_folder

EXTRA, NEEDS = "export", ("accelerate",)
NEEDED = {"marian": ()}  # runtime → libraries


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", help="model folder or Hub id")
    parser.add_argument("output", help="folder to write")
    parser.add_argument("--to", required=True, choices=list(NEEDED), help="runtime that the folder is for")


def run(arguments: argparse.Namespace) -> int:
    check_installed(NEEDED[arguments.to])
    from pathlib import Path

    from vanilla_transformer.data.tokenizer import load_tokenizer
    from vanilla_transformer.exporting.marian import write_marian
    from vanilla_transformer.inference.model_folder import load_model_folder
    from vanilla_transformer.training.atomic_folder import atomic_folder

    output = Path(arguments.output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"output {output} exists and is not empty; choose another folder")
    check_output_folder(output, "output")
    model, tokenizer = load_model_folder(arguments.folder), load_tokenizer(arguments.folder)
    with atomic_folder(output) as unfinished:
        write_marian(model, tokenizer, unfinished)
    print(f"{arguments.to}: {output}")
    return 0
