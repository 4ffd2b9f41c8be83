# SPDX-License-Identifier: Apache-2.0
"""The roofline of decoding: the machine's bandwidth and peak, and the least time that they allow."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, get_args

import torch
from transformers import PreTrainedModel

from vanilla_transformer.benchmark.configuration import RooflineConfig
from vanilla_transformer.benchmark.machine import lacks_precision
from vanilla_transformer.packed_linear import PackedLinear, Precision

WEIGHT_BYTES = {"float32": 4, "bfloat16": 2, "int8": 1}


@dataclass(frozen=True)
class WeightCounts:
    """Numbers of weights that are multiplied with."""

    step: int  # for every token of every hypothesis: the decoder's layers and the output projection
    source: int  # for every source token: the encoder's layers, and the decoder's projections of its output


def count_weights(model: PreTrainedModel) -> WeightCounts:
    """Count the weights of a `VanillaTransformerForConditionalGeneration`, biases and LayerNorms included."""
    seq2seq: Any = model
    cross = [layer.cross_attention for layer in seq2seq.model.decoder.layers]
    projections = _count(linear for attention in cross for linear in (attention.k_proj, attention.v_proj))
    return WeightCounts(
        step=_count(seq2seq.model.decoder.layers) - projections + seq2seq.lm_head.weight.numel(),
        source=_count(seq2seq.model.encoder.layers) + projections,
    )


def _count(modules: Any) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def roofline_seconds(
    weights: WeightCounts,
    weight_bytes: int,
    bandwidth: float,
    peak: float,
    sentences: int,
    beams: int,
    source_tokens: int,
    target_tokens: int,
) -> float:
    """The least time of decoding a batch if every step reads all weights and multiplies all rows with them.

    A step takes the longer of reading and multiplying. Attention over the cache, the softmax over the vocabulary and
    the search are not counted: the true minimum is higher.

    Args:
        bandwidth: bytes per second.
        peak: operations per second, two for each weight and row.
    """

    def phase(count: int, rows: int) -> float:
        return max(count * weight_bytes / bandwidth, 2 * count * rows / peak)

    first = phase(weights.step, sentences)  # a sentence has one hypothesis until its first token is known
    others = (target_tokens - 1) * phase(weights.step, sentences * beams)
    return phase(weights.source, sentences * source_tokens) + first + others


def read_bandwidth(size: int, device: torch.device, repeats: int) -> float:
    """Bytes per second of reading the same `size` bytes repeatedly, from the caches if they fit."""
    numbers = torch.ones(max(1, size // 4), device=device)
    return numbers.nbytes / _fastest(numbers.sum, device, repeats)


def peak_operations(settings: RooflineConfig, device: torch.device) -> dict[str, float]:
    """Operations per second of a square product, two for each multiplication, in each precision of the machine."""
    width, found = settings.product, {}
    for precision in get_args(Precision):
        if lacks_precision(precision, device) is None:
            dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
            inputs = torch.rand(width, width, device=device, dtype=dtype)
            linear = PackedLinear(torch.rand(width, width, device=device, dtype=dtype), None, precision)
            seconds = _fastest(lambda linear=linear, inputs=inputs: linear(inputs), device, settings.repeats)
            found[precision] = 2 * width**3 / seconds
    return found


@torch.inference_mode()
def _fastest(function: Callable[[], Any], device: torch.device, repeats: int) -> float:
    seconds = []
    for _ in range(repeats + 1):  # the first call is a warm-up
        start = time.perf_counter()
        function()
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])
