# SPDX-License-Identifier: Apache-2.0
"""Write a model for another runtime, which alone is imported."""

from pathlib import Path
from typing import Any

from vanilla_transformer.exporting.requirements import Quantization


def export_model(
    model: Any, tokenizer: Any, folder: Path, runtime: str, quantization: Quantization = "float32"
) -> None:
    """Write weights, tokenizer and generation config.

    Args:
        model: a `VanillaTransformerForConditionalGeneration`; for ONNX an `RNNSeq2SeqForConditionalGeneration`, too.
        folder: exists and is empty.
        runtime: "marian", "ctranslate2" or "onnx".
        quantization: "float32" for "marian".

    Raises:
        ValueError: the runtime does not have this architecture.
    """
    if runtime == "marian":
        from vanilla_transformer.exporting.marian import write_marian

        write_marian(model, tokenizer, folder)
    elif runtime == "onnx":
        from vanilla_transformer.exporting.onnx import write_onnx
        from vanilla_transformer.exporting.onnx_rnn import write_rnn_onnx

        write = write_rnn_onnx if model.config.model_type == "rnn_seq2seq" else write_onnx
        write(model, tokenizer, folder, quantization)
    else:
        from vanilla_transformer.exporting.ctranslate2 import write_ctranslate2_folder

        write_ctranslate2_folder(model, tokenizer, folder, quantization)
