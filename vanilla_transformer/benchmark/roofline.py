# SPDX-License-Identifier: Apache-2.0
"""The roofline: the machine's bandwidth and peak, and the least time of decoding that they allow."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.benchmark import Timer

from vanilla_transformer.benchmark.configuration import RooflineConfig
from vanilla_transformer.benchmark.machine import lacks_precision
from vanilla_transformer.benchmark.systems import Batch
from vanilla_transformer.packed_linear import PRECISIONS, PackedLinear

WEIGHT_BYTES = {"float32": 4, "bfloat16": 2, "int8": 1}


@dataclass(frozen=True)
class WeightCounts:
    """Numbers of weights that are multiplied with."""

    step: int  # for every token of every hypothesis: the decoder's layers and the output projection
    source: int  # for every source token: the encoder's layers, and the decoder's projections of its output


def count_weights(model: Any) -> WeightCounts:
    """Count the weights of a `VanillaTransformerForConditionalGeneration`, biases and LayerNorms included."""
    encoder, decoder = model.model.encoder.layers, model.model.decoder.layers
    cross = [layer.cross_attention for layer in decoder]
    projections = _count(linear for attention in cross for linear in (attention.k_proj, attention.v_proj))
    step = _count(decoder) - projections + model.lm_head.weight.numel()
    return WeightCounts(step, _count(encoder) + projections)


def _count(modules: Any) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def roofline_seconds(
    weights: WeightCounts, weight_bytes: int, bandwidth: float, peak: float, batch: Batch, beams: int
) -> float:
    """The least time of decoding a batch if every step reads all weights and multiplies all rows with them.

    A step takes the longer of reading and multiplying. Attention over the cache, the softmax over the vocabulary and
    the search are not counted: the true minimum is higher.

    Args:
        bandwidth: bytes per second.
        peak: operations per second, two for each weight and row.
        batch: of a fixed length.
    """

    def phase(count: int, rows: int) -> float:
        return max(count * weight_bytes / bandwidth, 2 * count * rows / peak)

    sentences, source_tokens = len(batch.sources), sum(map(len, batch.sources))
    first = phase(weights.step, sentences)  # a sentence has one hypothesis until its first token is known
    others = (batch.max_new_tokens - 1) * phase(weights.step, sentences * beams)
    return phase(weights.source, source_tokens) + first + others


def read_bandwidth(size: int, device: torch.device, repeats: int) -> float:
    """Bytes per second of reading the same `size` bytes repeatedly, from the caches if they fit."""
    numbers = torch.ones(max(1, size // 4), device=device)
    return numbers.nbytes / _fastest(numbers.sum, repeats)


def peak_operations(settings: RooflineConfig, device: torch.device) -> dict[str, float]:
    """Operations per second of a square product, two for each multiplication, in each precision of the machine."""
    width, found = settings.product, {}
    for precision in PRECISIONS:
        if lacks_precision(precision, device) is None:
            dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
            inputs, weight = torch.rand(2, width, width, device=device, dtype=dtype)
            linear = PackedLinear(weight, None, precision)
            found[precision] = 2 * width**3 / _fastest(lambda linear=linear, x=inputs: linear(x), settings.repeats)
    return found


def matrix_peak(width: int, precision: str, device: torch.device, repeats: int) -> float:
    """Operations per second of torch's own square product, two for each multiplication."""
    left, right = torch.rand(2, width, width, device=device, dtype=getattr(torch, precision))
    return 2 * width**3 / _fastest(lambda: left @ right, repeats)


@torch.inference_mode()
def _fastest(function: Callable[[], Any], repeats: int) -> float:
    timer = Timer("function()", globals={"function": function}, num_threads=torch.get_num_threads())
    return min(timer.timeit(1).mean for _ in range(repeats))
