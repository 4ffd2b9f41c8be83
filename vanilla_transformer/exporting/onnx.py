# SPDX-License-Identifier: Apache-2.0
"""The exported MarianMT as ONNX graphs in the layout of Hugging Face's optimum: encoder, first step and later steps.

The graph of later steps reads keys and values of the source, which the first step has computed, and adds those of its
token to the target's.
"""

import logging
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from torch import nn
from torch.export import Dim
from transformers import MarianConfig
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from vanilla_transformer.exporting.marian import write_marian
from vanilla_transformer.exporting.onnx_translator import ENCODER, FIRST_STEP, LATER_STEPS
from vanilla_transformer.exporting.requirements import Quantization
from vanilla_transformer.inference.weight_files import WEIGHTS

CACHED = ("decoder.key", "decoder.value", "encoder.key", "encoder.value")  # of a layer; the source's are the encoder's


class Encoder(nn.Module):
    def __init__(self, marian: Any):
        super().__init__()
        self.encoder = marian.get_encoder()

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """`(batch, source_length)` twice → `(batch, source_length, d_model)`."""
        return self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state


class Decoder(nn.Module):
    """A step of the decoder; its cache is a flat tuple, for each layer keys and values of the target and the source."""

    def __init__(self, marian: Any):
        super().__init__()
        self.marian = marian

    def _step(
        self, input_ids: torch.Tensor, source: torch.Tensor, source_mask: torch.Tensor, cache: EncoderDecoderCache
    ) -> torch.Tensor:
        options = {"encoder_hidden_states": source, "encoder_attention_mask": source_mask}
        hidden = self.marian.get_decoder()(input_ids=input_ids, cache=cache, use_cache=True, **options)
        return self.marian.lm_head(hidden.last_hidden_state) + self.marian.final_logits_bias


class FirstStep(Decoder):
    def forward(
        self, input_ids: torch.Tensor, encoder_hidden_states: torch.Tensor, encoder_attention_mask: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """`(batch, target_length)` → logits `(batch, target_length, vocab_size)`, and the cache."""
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        logits = self._step(input_ids, encoder_hidden_states, encoder_attention_mask, cache)
        layers: Any = zip(cache.self_attention_cache.layers, cache.cross_attention_cache.layers, strict=True)
        return logits, *(tensor for pair in layers for layer in pair for tensor in (layer.keys, layer.values))


class LaterSteps(Decoder):
    def forward(
        self, input_ids: torch.Tensor, encoder_attention_mask: torch.Tensor, past: list[torch.Tensor]
    ) -> tuple[torch.Tensor, ...]:
        """`(batch, 1)` → logits `(batch, 1, vocab_size)`, and keys and values of the longer target."""
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        for i in range(len(past) // 4):
            keys, values, source_keys, source_values = past[4 * i : 4 * i + 4]
            cache.self_attention_cache.update(keys, values, i)
            cache.cross_attention_cache.update(source_keys, source_values, i)
            cache.is_updated[i] = True
        # The encoder's output is not read, because its keys and values are in the cache; its length sizes the mask.
        source = past[2].new_zeros(1).expand(*encoder_attention_mask.shape, self.marian.config.d_model)
        logits = self._step(input_ids, source, encoder_attention_mask, cache)
        layers: Any = cache.self_attention_cache.layers
        return logits, *(tensor for layer in layers for tensor in (layer.keys, layer.values))


class Graph(NamedTuple):
    """A graph's module, inputs and outputs, for `torch.onnx.export`."""

    module: type[nn.Module]
    inputs: dict[str, Any]  # argument → an example
    shapes: dict[str, Any]  # argument → its dimensions without a fixed size
    input_names: list[str]
    output_names: list[str]


def graphs_of(config: MarianConfig) -> dict[str, Graph]:
    """File → its graph. The names of inputs and outputs are optimum's."""
    batch, source, target, past = map(Dim, ("batch_size", "source_length", "target_length", "past_length"))
    # Sizes of the examples that differ wherever the dimensions do.
    ids, mask = torch.ones(2, 3, dtype=torch.long), torch.ones(2, 5, dtype=torch.long)
    hidden = torch.zeros(2, 5, config.d_model)
    heads = config.decoder_attention_heads
    names = [f"{i}.{kind}" for i in range(config.decoder_layers) for kind in CACHED]
    lengths = {name: (5, source) if "encoder" in name else (3, past) for name in names}
    cached = [torch.zeros(2, heads, length, config.d_model // heads) for length, _ in lengths.values()]
    cached_shapes = [{0: batch, 2: length} for _, length in lengths.values()]
    source_ids = mask.clone()  # a tensor of its own: the exporter makes the same tensor the same input
    encoder = {"input_ids": source_ids, "attention_mask": mask}
    encoder_shapes = {name: {0: batch, 1: source} for name in encoder}
    first = {"input_ids": ids, "encoder_hidden_states": hidden, "encoder_attention_mask": mask}
    first_shapes = {name: {0: batch, 1: target if name == "input_ids" else source} for name in first}
    later = {"input_ids": ids[:, :1], "encoder_attention_mask": mask, "past": cached}
    later_shapes = {"input_ids": {0: batch}, "encoder_attention_mask": {0: batch, 1: source}, "past": cached_shapes}
    later_names = [*list(later)[:2], *(f"past_key_values.{name}" for name in names)]
    present = [f"present.{name}" for name in names]
    of_target = [name for name in present if ".decoder." in name]
    return {
        ENCODER: Graph(Encoder, encoder, encoder_shapes, list(encoder), ["last_hidden_state"]),
        FIRST_STEP: Graph(FirstStep, first, first_shapes, list(first), ["logits", *present]),
        LATER_STEPS: Graph(LaterSteps, later, later_shapes, later_names, ["logits", *of_target]),
    }


def write_onnx(model: Any, tokenizer: Any, folder: Path, quantization: Quantization = "float32") -> None:
    """Write a folder that optimum's `ORTModelForSeq2SeqLM` opens; `AutoTokenizer` opens it, too.

    Args:
        model: as for `write_marian`.
        folder: exists and is empty.
        quantization: with "int8" the weights of matrix products are 8-bit integers, and so are their inputs while
            onnxruntime computes them.

    Raises:
        ValueError: MarianMT does not have this architecture.
    """
    marian: Any = write_marian(model, tokenizer, folder, two_vocabularies=True)
    (folder / WEIGHTS).unlink()  # they are in the graphs
    marian.set_attn_implementation("eager")
    graphs = graphs_of(marian.config)
    write_graphs(marian, graphs, folder)
    if quantization == "int8":
        quantize_graphs(folder, graphs)


def write_graphs(model: Any, graphs: dict[str, Graph], folder: Path) -> None:
    """Write each graph of `model` to its file."""
    with _quiet():
        for file, graph in graphs.items():
            torch.onnx.export(
                graph.module(model).eval(),
                kwargs=graph.inputs,
                f=folder / file,
                input_names=graph.input_names,
                output_names=graph.output_names,
                dynamic_shapes=graph.shapes,
                dynamo=True,
                external_data=False,
                verbose=False,
            )


def quantize_graphs(folder: Path, files: Iterable[str]) -> None:
    """Quantize graphs of a folder in place, to int8."""
    with _quiet():
        for file in files:
            quantize_dynamic(folder / file, folder / file, weight_type=QuantType.QInt8)


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporters warn of their own deprecated calls, and of packages that are not needed."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
