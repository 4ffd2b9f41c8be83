# SPDX-License-Identifier: Apache-2.0
"""Random weights and sentences of one length: every model size, batch size and number of beams."""

from collections.abc import Callable
from typing import Any

import torch

from vanilla_transformer.benchmark.configuration import BenchmarkConfig
from vanilla_transformer.benchmark.memory import peak_memory
from vanilla_transformer.benchmark.random_model import random_model, random_sources
from vanilla_transformer.benchmark.roofline import WEIGHT_BYTES, count_weights, read_bandwidth, roofline_seconds
from vanilla_transformer.benchmark.systems import FAST, Batch, Decoding, open_systems
from vanilla_transformer.benchmark.timing import Measurement, measure_in_turns


def measure_synthetic(
    config: BenchmarkConfig,
    size: str,
    names: list[str],
    device: torch.device,
    peaks: dict[str, float],
    on_progress: Callable[[str], None],
) -> dict[str, Any]:
    """Measure every case, a batch size with a number of beams, of one model size.

    Args:
        names: systems that `build_system` knows.
        peaks: operations per second in each precision.
        on_progress: called with a line for each case.

    Returns:
        `size`, `memory` (see `peak_memory`), `bandwidths` (bytes per second, in each precision, of reading the weights
        of one step) and `cases`: `batch_size`, `beams`, `results` by system (`seconds` of each round,
        `tokens_per_second`, `sentences_per_second`, and `match`, the fraction of sentences with the target of the fast
        decoder in float32), and `roofline` by precision (`roofline_seconds`, and `fraction`: these seconds divided by
        the fast decoder's median).
    """
    model_config = config.model_config(size)
    model: Any = random_model(model_config)
    model.to(device)
    max_length = max(config.source_tokens, config.target_tokens) + 1  # and the start token
    weights = count_weights(model)
    lengths = config.source_tokens, config.target_tokens
    bandwidths = {
        precision: read_bandwidth(weights.step * WEIGHT_BYTES[precision], device, config.roofline.repeats)
        for precision in peaks
    }

    def batch_of(sentences: int) -> Batch:
        return Batch(random_sources(model_config.vocab_size, sentences, config.source_tokens), config.target_tokens)

    def roofline(batch_size: int, beams: int, found: dict[str, Measurement]) -> dict[str, dict[str, float]]:
        bounds = {}
        for precision, peak in peaks.items():
            if FAST[precision] in found:
                rates = bandwidths[precision], peak
                seconds = roofline_seconds(weights, WEIGHT_BYTES[precision], *rates, batch_size, beams, *lengths)
                fraction = seconds / found[FAST[precision]].median
                bounds[precision] = {"roofline_seconds": seconds, "fraction": fraction}
        return bounds

    memory, cases = None, []
    with open_systems(names, model, max_length) as (systems, folder):
        for batch_size in config.batch_sizes:
            for beams in config.beams:
                found = measure_in_turns(systems, [batch_of(batch_size)], _fixed_length(beams), config.timing)
                results = _rates(found, batch_size, config.target_tokens)
                bounds = roofline(batch_size, beams, found)
                cases.append({"batch_size": batch_size, "beams": beams, "results": results, "roofline": bounds})
                shown = ", ".join(f"{name} {rates['tokens_per_second']:,.0f}" for name, rates in results.items())
                on_progress(f"{size}, {batch_size} sentences, {beams} beams: {shown} tokens/s")
        if device.type == "cpu":
            batch, decoding = batch_of(max(config.batch_sizes)), _fixed_length(max(config.beams))
            memory = peak_memory(names, model_config, folder, batch, decoding, max_length)
            on_progress(f"{size}: memory")
    return {"size": size, "memory": memory, "bandwidths": bandwidths, "cases": cases}


def _fixed_length(beams: int) -> Decoding:
    """No length penalty: it changes no order among targets of one length."""
    return Decoding(beams=beams, is_fixed_length=True, alpha=0.0, length_penalty=0.0)


def _rates(found: dict[str, Measurement], batch_size: int, target_tokens: int) -> dict[str, Any]:
    reference = found[FAST["float32"]].targets
    return {
        name: {
            "seconds": measurement.seconds,
            "tokens_per_second": batch_size * target_tokens / measurement.median,
            "sentences_per_second": batch_size / measurement.median,
            "match": sum(a == b for a, b in zip(measurement.targets, reference, strict=True)) / batch_size,
        }
        for name, measurement in found.items()
    }
