# SPDX-License-Identifier: Apache-2.0
"""Make a model folder of another toolkit's model, which need not be installed.

vanilla-transformer import opus-mt-en-de models/en-de
vanilla-transformer import checkpoints/checkpoint_best.pt models/mine --from fairseq
vanilla-transformer import weights.pt models/mine --from annotated num_heads=8

SOURCE is a folder or a checkpoint; its toolkit is recognised, or given with --from. Nothing in it is executed.
"""

import argparse

from vanilla_transformer.console.outputs import check_output_folder

EXTRA, NEEDS = "training", ("accelerate", "tokenizers", "yaml")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE", help="the other toolkit's folder or checkpoint")
    parser.add_argument("folder", metavar="FOLDER", help="folder to write")
    parser.add_argument("changes", nargs="*", metavar="field=value", help="fields of the model that SOURCE lacks")
    parser.add_argument("--from", dest="kind", metavar="KIND", help="the toolkit, where it is not recognised")


def run(arguments: argparse.Namespace) -> int:
    from pathlib import Path

    from vanilla_transformer.importing.import_model import import_model
    from vanilla_transformer.training.yaml_sections import apply_overrides, plain

    folder = Path(arguments.folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"FOLDER {folder} exists and is not empty; choose another folder")
    check_output_folder(folder, "FOLDER")
    changes = plain(apply_overrides({}, arguments.changes))
    model = import_model(Path(arguments.source), folder, arguments.kind, changes)
    print(f"model folder: {folder} ({model.num_parameters():,} parameters)")
    if not (folder / "tokenizer.json").is_file():
        print("It has no tokenizer: SOURCE has none. It translates ids, and no text, until you add one.")
    return 0
