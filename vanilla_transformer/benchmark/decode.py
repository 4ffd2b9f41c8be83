# SPDX-License-Identifier: Apache-2.0
"""The benchmark of decoding: random weights and sentences of one length, then real sentences."""

import sys
from collections.abc import Callable
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import torch

from vanilla_transformer.benchmark.configuration import BenchmarkConfig, DecodingConfig
from vanilla_transformer.benchmark.machine import check_import_order, describe_machine
from vanilla_transformer.benchmark.memory import MODEL, decoding_memory, in_own_process
from vanilla_transformer.benchmark.random_model import random_model, random_sources
from vanilla_transformer.benchmark.real_sentences import measure_real
from vanilla_transformer.benchmark.roofline import (
    WEIGHT_BYTES,
    count_weights,
    peak_operations,
    read_bandwidth,
    roofline_seconds,
)
from vanilla_transformer.benchmark.systems import (
    CTRANSLATE2,
    FAST,
    Batch,
    measure_decoding,
    open_systems,
    skip_reasons,
    speeds,
)
from vanilla_transformer.benchmark.thresholds import check_thresholds
from vanilla_transformer.comparison.result_file import write_result
from vanilla_transformer.inference.model_folder import default_device


def benchmark_decoding(config: BenchmarkConfig, on_progress: Callable[[str], None]) -> dict[str, Any]:
    """Measure everything, and write it to `config.output`.

    Args:
        on_progress: called with a line for each part that is done.

    Returns:
        `settings`, `machine`, `skipped` (system → reason), `roofline`, `synthetic`, `real` (see `measure_real`; `None`:
        skipped) and `thresholds` (see `check_thresholds`). `synthetic` has for each size of model `size`, `memory`
        (peak bytes by system; `None` but for a CPU under Linux), `bandwidths` (bytes per second, in each precision, of
        reading the weights of one step) and `cases`: `batch_size`, `beams`, `results` by system (`speeds`, and `match`,
        the fraction of sentences with the target of the fast decoder in float32), and `roofline` by system, for
        the fast decoder and CTranslate2 (`roofline_seconds` in its precision, and `fraction`: these seconds divided
        by the system's median).

    Raises:
        ValueError: CTranslate2 is wanted and not installed; and as the parts.
        RuntimeError: torch was imported before CTranslate2.
    """
    device = default_device() if config.device == "auto" else torch.device(config.device)
    reasons = skip_reasons(config.precisions, device, config.ctranslate2)
    if config.ctranslate2:
        check_import_order(sys.modules)
    names = [name for name, reason in reasons.items() if reason is None]
    bandwidth = read_bandwidth(config.roofline.read_mebibytes * 2**20, device, config.roofline.repeats)
    peaks = peak_operations(config.roofline, device)
    on_progress("roofline of the machine")
    synthetic = [_measure_size(config, size, names, device, peaks, on_progress) for size in config.sizes]
    real = None
    if config.real.model is not None:
        real = measure_real(config.real, config.timing, names, device, on_progress)
    results = {
        "machine": describe_machine(device),
        "skipped": {name: reason for name, reason in reasons.items() if reason is not None},
        "roofline": {"bandwidth": bandwidth, "peaks": peaks},
        "synthetic": synthetic,
        "real": real,
        "thresholds": check_thresholds([case for size in synthetic for case in size["cases"]], real, config.thresholds),
    }
    settings, output = asdict(config), Path(config.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_result(output, settings, results)
    return {"settings": settings, **results}


def _measure_size(
    config: BenchmarkConfig,
    size: str,
    names: list[str],
    device: torch.device,
    peaks: dict[str, float],
    on_progress: Callable[[str], None],
) -> dict[str, Any]:
    """Every case, a batch size with a number of beams, of one model size."""
    model_config = config.model_config(size)
    model: Any = random_model(model_config)
    model.to(device)
    max_length = max(config.source_tokens, config.target_tokens) + 1  # and the start token
    weights = count_weights(model)
    bandwidths = {
        precision: read_bandwidth(weights.step * WEIGHT_BYTES[precision], device, config.roofline.repeats)
        for precision in peaks
    }

    def inputs(sentences: int, beams: int) -> tuple[Batch, DecodingConfig]:
        sources = random_sources(model_config.vocab_size, sentences, config.source_tokens)
        # No length penalty: it changes no order among targets of one length.
        decoding = DecodingConfig(beams=beams, alpha=0.0, length_penalty=0.0, early_stopping=True)
        return Batch(sources, config.target_tokens, is_fixed_length=True), decoding

    memory, cases = None, []
    with open_systems(names, model, max_length) as (systems, folder):
        for batch_size, beams in product(config.batch_sizes, config.beams):
            batch, decoding = inputs(batch_size, beams)
            found = measure_decoding(systems, [batch], decoding, config.timing)
            case = {"batch_size": batch_size, "beams": beams, "results": {}, "roofline": {}}
            for name, measurement in found.items():
                pairs = zip(measurement.result, found[FAST["float32"]].result, strict=True)
                case["results"][name] = {**speeds(measurement), "match": sum(a == b for a, b in pairs) / batch_size}
            for precision, peak in peaks.items():
                rates = WEIGHT_BYTES[precision], bandwidths[precision], peak
                seconds = roofline_seconds(weights, *rates, batch, beams)
                for own in (FAST, CTRANSLATE2):
                    if precision in own and own[precision] in found:
                        fraction = seconds / found[own[precision]].median
                        case["roofline"][own[precision]] = {"roofline_seconds": seconds, "fraction": fraction}
            cases.append(case)
            shown = ", ".join(f"{name} {result['tokens_per_second']:,.0f}" for name, result in case["results"].items())
            on_progress(f"{size}, {batch_size} sentences, {beams} beams: {shown} tokens/s")
        if device.type == "cpu" and sys.platform == "linux":
            model.save_pretrained(folder / MODEL)
            largest = inputs(max(config.batch_sizes), max(config.beams))
            memory = {name: in_own_process(decoding_memory, name, folder, max_length, *largest) for name in names}
            on_progress(f"{size}: memory")
    return {"size": size, "memory": memory, "bandwidths": bandwidths, "cases": cases}
