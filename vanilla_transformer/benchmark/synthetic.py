# SPDX-License-Identifier: Apache-2.0
"""The first part: random weights, every size, batch size and number of beams, sentences of one length."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from vanilla_transformer.benchmark.baselines import write_ctranslate2
from vanilla_transformer.benchmark.configuration import BenchmarkConfig
from vanilla_transformer.benchmark.memory import peak_memory
from vanilla_transformer.benchmark.random_model import random_model, random_sources
from vanilla_transformer.benchmark.roofline import BYTES, count_weights, read_bandwidth, roofline_seconds
from vanilla_transformer.benchmark.systems import FAST, Batch, Decoding, make_contender
from vanilla_transformer.benchmark.timing import Measurement, measure_in_turns


def measure_cells(
    config: BenchmarkConfig,
    names: list[str],
    device: torch.device,
    peaks: dict[str, float],
    on_progress: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Measure every cell of every size.

    Args:
        names: of the contenders, as `make_contender` knows them.
        peaks: operations per second by precision.
        on_progress: called with a line for each cell.

    Returns:
        For each size `size`, `memory` (see `peak_memory`), `bandwidths` (bytes per second of reading as many bytes
        as a step of the fast loop has weights, by precision) and `cells`: `batch_size`,
        `beams`, `results` by contender (`seconds` of each round, `tokens_per_second`, `sentences_per_second`, and
        `same`, the share of sentences whose target is the fast loop's in float32), and `limits` by precision
        (`roofline_seconds`, and `reached`, its share of the fast loop's median).
    """
    return [_measure_size(size, config, names, device, peaks, on_progress) for size in config.sizes]


def _measure_size(
    size: str,
    config: BenchmarkConfig,
    names: list[str],
    device: torch.device,
    peaks: dict[str, float],
    on_progress: Callable[[str], None],
) -> dict[str, Any]:
    model_config = config.model_config(size)
    model: Any = random_model(model_config)
    model.to(device)
    longest = max(config.source_tokens, config.target_tokens) + 1  # and the start
    weights = count_weights(model)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "ctranslate2"
        if config.ctranslate2:
            write_ctranslate2(model, folder, longest)
        contenders = [make_contender(name, lambda: model, folder, longest) for name in names]
        bandwidths = {
            precision: read_bandwidth(weights.step * BYTES[precision], device, config.limits.repeats)
            for precision in peaks
        }
        cells = []
        for batch_size in config.batch_sizes:
            batch = _batch(config, model_config.vocab_size, batch_size)
            for beams in config.beams:
                found = measure_in_turns(contenders, [batch], _exactly(beams), config.timing)
                cell = {"batch_size": batch_size, "beams": beams, "results": _rates(found, config, batch_size)}
                cell["limits"] = {}
                for precision in (one for one in peaks if FAST[one] in found):
                    least = roofline_seconds(
                        weights,
                        BYTES[precision],
                        bandwidths[precision],
                        peaks[precision],
                        batch_size,
                        beams,
                        config.source_tokens,
                        config.target_tokens,
                    )
                    reached = least / found[FAST[precision]].median
                    cell["limits"][precision] = {"roofline_seconds": least, "reached": reached}
                cells.append(cell)
                on_progress(f"{size}, {batch_size} sentences, {beams} beams: {_speeds(cell)}")
        memory = None
        if device.type == "cpu":
            largest, beams = _batch(config, model_config.vocab_size, max(config.batch_sizes)), max(config.beams)
            memory = peak_memory(names, model_config, folder, largest, _exactly(beams), longest)
            on_progress(f"{size}: memory")
    return {"size": size, "memory": memory, "bandwidths": bandwidths, "cells": cells}


def _batch(config: BenchmarkConfig, vocab_size: int, batch_size: int) -> Batch:
    return Batch(random_sources(vocab_size, batch_size, config.source_tokens), config.target_tokens)


def _exactly(beams: int) -> Decoding:
    """Sums of log-probabilities: of targets that are all as long, no penalty changes the order."""
    return Decoding(beams=beams, is_exact=True, alpha=0.0, length_penalty=0.0)


def _rates(found: dict[str, Measurement], config: BenchmarkConfig, batch_size: int) -> dict[str, Any]:
    reference = found[FAST["float32"]].targets
    return {
        name: {
            "seconds": one.seconds,
            "tokens_per_second": batch_size * config.target_tokens / one.median,
            "sentences_per_second": batch_size / one.median,
            "same": sum(a == b for a, b in zip(one.targets, reference, strict=True)) / batch_size,
        }
        for name, one in found.items()
    }


def _speeds(cell: dict[str, Any]) -> str:
    rates = (f"{name} {one['tokens_per_second']:,.0f}" for name, one in cell["results"].items())
    return f"{', '.join(rates)} tokens/s"
