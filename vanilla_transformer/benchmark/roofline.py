# SPDX-License-Identifier: Apache-2.0
"""What the machine allows: how fast it reads and multiplies, and the least time that a decoding takes by that."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from vanilla_transformer.benchmark.configuration import LimitsConfig
from vanilla_transformer.benchmark.machine import lacks_precision
from vanilla_transformer.packed_linear import PackedLinear, Precision

BYTES = {"float32": 4, "bfloat16": 2, "int8": 1}  # of a weight


@dataclass(frozen=True)
class Weights:
    """Numbers of weights that are multiplied with.

    Args:
        step: for every token of every hypothesis: the decoder's layers and the projection before the softmax.
        source: once for every token of the source: the encoder's layers, and the decoder's keys and values of it.
    """

    step: int
    source: int


def count_weights(model: PreTrainedModel) -> Weights:
    """Of a `VanillaTransformerForConditionalGeneration`; biases and LayerNorms among them."""
    whole: Any = model
    encoder, decoder = whole.model.encoder, whole.model.decoder
    of_source = [
        parameter
        for layer in decoder.layers
        for linear in (layer.cross_attention.k_proj, layer.cross_attention.v_proj)
        for parameter in linear.parameters()
    ]
    source = sum(one.numel() for one in of_source)
    layers, encoder_layers = (sum(one.numel() for one in stack.layers.parameters()) for stack in (decoder, encoder))
    return Weights(step=layers - source + whole.lm_head.weight.numel(), source=encoder_layers + source)


def roofline_seconds(
    weights: Weights,
    bytes_of_weight: int,
    bandwidth: float,
    peak: float,
    sentences: int,
    beams: int,
    source_tokens: int,
    target_tokens: int,
) -> float:
    """The least time of decoding a batch in which every step reads all weights and multiplies all rows with them.

    Of a step, the longer of reading and multiplying counts. Attention over what is cached, the softmax over the
    vocabulary and the search are left out: what is really possible is more.

    Args:
        bandwidth: bytes per second.
        peak: operations per second, two for each weight and row.
    """

    def phase(count: int, rows: int) -> float:
        return max(count * bytes_of_weight / bandwidth, 2 * count * rows / peak)

    first = phase(weights.step, sentences)  # there is one hypothesis until its first token is known
    others = (target_tokens - 1) * phase(weights.step, sentences * beams)
    return phase(weights.source, sentences * source_tokens) + first + others


def read_bandwidth(size: int, device: torch.device, repeats: int) -> float:
    """Bytes per second of reading `size` bytes again and again, from the caches where they fit."""
    numbers = torch.ones(max(1, size // 4), device=device)
    return numbers.nbytes / _fastest(numbers.sum, device, repeats)


def peak_operations(settings: LimitsConfig, device: torch.device) -> dict[str, float]:
    """Operations per second of a square product, two for each multiplication: precision → of those that there are."""
    precisions: tuple[Precision, ...] = ("float32", "bfloat16", "int8")
    width, found = settings.product, {}
    for precision in precisions:
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
    for _ in range(repeats + 1):  # the first pays for memory and threads
        start = time.perf_counter()
        function()
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])
