# SPDX-License-Identifier: Apache-2.0
"""A page that translates in a browser's tab with transformers.js: the exported MarianMT, the library and the page.

The folder needs no server but one that hands out files. transformers.js decodes greedily: it has no beam search.
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
from tokenizers import Tokenizer

from vanilla_transformer.exporting.browser_library import copy_library
from vanilla_transformer.exporting.merged_decoder import merge_decoders
from vanilla_transformer.exporting.onnx import ENCODER, FIRST_STEP, LATER_STEPS, write_onnx
from vanilla_transformer.exporting.requirements import Quantization

PAGE = Path(__file__).with_name("page")
MODEL, LIBRARY = "model", "library"  # folders, as the page names them
DTYPES = {"float32": ("fp32", ""), "int8": ("q8", "_quantized")}  # transformers.js' name, and its files' suffix
OF_BEAMS = ("num_beams", "early_stopping", "length_penalty")


def write_web(model: Any, tokenizer: Any, folder: Path, modules: Path, quantization: Quantization = "float32") -> None:
    """Write a folder whose `index.html` translates; its folder `model` is a model of transformers.js.

    Args:
        model: as for `write_marian`.
        folder: exists and is empty.
        modules: from `node_modules`.

    Raises:
        ValueError: MarianMT does not have this architecture.
    """
    copy_library(modules, folder / LIBRARY)
    shutil.copytree(PAGE, folder, dirs_exist_ok=True)
    (folder / MODEL).mkdir()
    write_onnx(model, tokenizer, folder / MODEL, quantization)
    as_transformers_js(folder / MODEL, quantization)


def as_transformers_js(folder: Path, quantization: Quantization) -> None:
    """Change a folder of `write_onnx` in place: graphs, settings and tokenizer as transformers.js reads them."""
    dtype, suffix = DTYPES[quantization]
    graphs = folder / "onnx"
    graphs.mkdir()
    (folder / ENCODER).rename(graphs / f"encoder_model{suffix}.onnx")
    steps = [folder / FIRST_STEP, folder / LATER_STEPS]
    onnx.save(merge_decoders(*map(onnx.load, steps)), graphs / f"decoder_model_merged{suffix}.onnx")
    for step in steps:
        step.unlink()
    with _changed(folder / "config.json") as config:
        config["transformers.js_config"] = {"dtype": dtype}
    with _changed(folder / "generation_config.json") as generation:
        for name in OF_BEAMS:
            generation.pop(name, None)
    reserved = _take_out_reserved(folder / "tokenizer.json")
    with _changed(folder / "tokenizer_config.json") as config:
        config["additional_special_tokens"] = reserved


def _take_out_reserved(file: Path) -> list[str]:
    """Take the special tokens out of the added ones, which transformers.js finds in text; return them.

    They are in the vocabulary, too, and `additional_special_tokens` tells which of them it leaves out of a translation.
    """
    vocabulary = Tokenizer.from_file(str(file)).get_vocab(with_added_tokens=False)
    with _changed(file) as backend:
        found = {each["content"] for each in backend["added_tokens"] if each["special"]} & set(vocabulary)
        backend["added_tokens"] = [each for each in backend["added_tokens"] if each["content"] not in found]
    return sorted(found)


@contextmanager
def _changed(file: Path) -> Iterator[dict[str, Any]]:
    """The values of a JSON file, which are written back."""
    values = json.loads(file.read_text(encoding="utf-8"))
    yield values
    file.write_text(f"{json.dumps(values, ensure_ascii=False, indent=2)}\n", encoding="utf-8")
