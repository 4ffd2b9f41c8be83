# SPDX-License-Identifier: Apache-2.0
"""Write a model folder for another runtime: transformers' own MarianMT, CTranslate2 or ONNX.

    vanilla-transformer export runs/multi30k/model runs/multi30k/marian --to marian
    vanilla-transformer export runs/multi30k/model runs/multi30k/ctranslate2 --to ctranslate2 --quantization int8
    vanilla-transformer export runs/multi30k/model runs/multi30k/onnx --to onnx

The folder for MarianMT opens in transformers 4.40 and every later version, without this package and remote code.
An RNN can go to ONNX alone. A model that a runtime cannot have is refused, with the reason.
"""

import argparse

from vanilla_transformer.console.arguments import UsageError
from vanilla_transformer.console.extras import check_installed
from vanilla_transformer.console.outputs import check_output_folder

EXTRA, NEEDS = "export", ("accelerate",)
NEEDED = {  # runtime → libraries
    "marian": (),
    "ctranslate2": ("ctranslate2",),
    "onnx": ("onnx", "onnxruntime", "onnxscript"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", help="model folder or Hub id")
    parser.add_argument("output", help="folder to write")
    parser.add_argument("--to", required=True, choices=list(NEEDED), help="runtime that the folder is for")
    parser.add_argument(
        "--quantization", choices=["float32", "int8"], default="float32", help="of the weights (default: %(default)s)"
    )


def run(arguments: argparse.Namespace) -> int:
    if arguments.to == "marian" and arguments.quantization != "float32":
        raise UsageError(f"--quantization {arguments.quantization}: transformers loads MarianMT in float32 alone")
    check_installed(NEEDED[arguments.to])
    from pathlib import Path

    from transformers.utils.logging import disable_progress_bar

    from vanilla_transformer.data.tokenizer import load_tokenizer
    from vanilla_transformer.inference.model_folder import load_model_folder
    from vanilla_transformer.training.atomic_folder import atomic_folder

    output = Path(arguments.output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"output {output} exists and is not empty; choose another folder")
    check_output_folder(output, "output")
    disable_progress_bar()  # of reading and writing weights
    model, tokenizer = load_model_folder(arguments.folder), load_tokenizer(arguments.folder)
    with atomic_folder(output) as unfinished:
        if arguments.to == "marian":
            from vanilla_transformer.exporting.marian import write_marian

            write_marian(model, tokenizer, unfinished)
        elif arguments.to == "onnx":
            from vanilla_transformer.exporting.onnx import write_onnx
            from vanilla_transformer.exporting.onnx_rnn import write_rnn_onnx

            write = write_rnn_onnx if model.config.model_type == "rnn_seq2seq" else write_onnx
            write(model, tokenizer, unfinished, arguments.quantization)
        else:
            from vanilla_transformer.exporting.ctranslate2 import write_ctranslate2_folder

            write_ctranslate2_folder(model, tokenizer, unfinished, arguments.quantization)
    print(f"{arguments.to}: {output}")
    return 0
