# SPDX-License-Identifier: Apache-2.0
"""Write a model folder for another runtime: transformers' own MarianMT, CTranslate2, ONNX or a browser.

    vanilla-transformer export runs/multi30k/model runs/multi30k/marian --to marian
    vanilla-transformer export runs/multi30k/model runs/multi30k/ctranslate2 --to ctranslate2 --quantization int8
    vanilla-transformer export runs/multi30k/model runs/multi30k/onnx --to onnx
    vanilla-transformer export runs/multi30k/model runs/multi30k/web --to web

The folder for MarianMT opens in transformers 4.40 and every later version, without this package and remote code.
`web` writes a page that translates in a browser's tab, and takes transformers.js for it from npm.
An RNN can go to ONNX alone. A model that a runtime cannot have is refused, with the reason.
"""

import argparse
import shlex
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from vanilla_transformer.console.arguments import UsageError
from vanilla_transformer.console.extras import check_installed
from vanilla_transformer.console.outputs import check_output_folder

EXTRA, NEEDS = "export", ("accelerate",)
NEEDED = {  # runtime → libraries
    "marian": (),
    "ctranslate2": ("ctranslate2",),
    "onnx": ("onnx", "onnxruntime", "onnxscript"),
    "web": ("onnx", "onnxruntime", "onnxscript"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", help="model folder or Hub id")
    parser.add_argument("output", help="folder to write")
    parser.add_argument("--to", required=True, choices=list(NEEDED), help="runtime that the folder is for")
    parser.add_argument(
        "--quantization", choices=["float32", "int8"], default="float32", help="of the weights (default: %(default)s)"
    )
    parser.add_argument(
        "--library",
        metavar="FOLDER",
        help="of `web`: where `npm install` has put transformers.js (default: npm is asked)",
    )


def run(arguments: argparse.Namespace) -> int:
    if arguments.to == "marian" and arguments.quantization != "float32":
        raise UsageError(f"--quantization {arguments.quantization}: transformers loads MarianMT in float32 alone")
    if arguments.library and arguments.to != "web":
        raise UsageError(f"--library {arguments.library} is for --to web; {arguments.to} needs no library")
    check_installed(NEEDED[arguments.to])
    from pathlib import Path

    from transformers.utils.logging import disable_progress_bar

    from vanilla_transformer.data.tokenizer import load_tokenizer
    from vanilla_transformer.exporting.export_model import export_model
    from vanilla_transformer.exporting.exported_card import write_exported_card
    from vanilla_transformer.inference.model_folder import load_model_folder
    from vanilla_transformer.training.atomic_folder import atomic_folder

    output = Path(arguments.output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"output {output} exists and is not empty; choose another folder")
    check_output_folder(output, "output")
    disable_progress_bar()  # of reading and writing weights
    model, tokenizer = load_model_folder(arguments.folder), load_tokenizer(arguments.folder)
    with _library(arguments, model) as library, atomic_folder(output) as unfinished:
        if arguments.to == "web":
            from vanilla_transformer.exporting.web import write_web

            write_web(model, tokenizer, unfinished, library, arguments.quantization)
        else:
            export_model(model, tokenizer, unfinished, arguments.to, arguments.quantization)
            write_exported_card(arguments.folder, unfinished, arguments.to, arguments.quantization)
    print(f"{arguments.to}: {output}")
    if arguments.to == "web":
        print(f"To see it: python -m http.server --bind 127.0.0.1 --directory {shlex.quote(str(output))} 8000")
        print("and open http://127.0.0.1:8000 (browsers load no modules from file://)")
    return 0


def _library(arguments: argparse.Namespace, model: Any) -> AbstractContextManager[Any]:
    """The packages that a page needs, once it is clear that the model can have one; nothing for another runtime."""
    if arguments.to != "web":
        return nullcontext()
    from vanilla_transformer.exporting.browser_library import node_modules
    from vanilla_transformer.exporting.marian import check_marian_supports

    check_marian_supports(model.config)
    return node_modules(arguments.library)
