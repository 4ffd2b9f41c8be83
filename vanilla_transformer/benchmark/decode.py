# SPDX-License-Identifier: Apache-2.0
"""The benchmark of decoding as a whole."""

import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from vanilla_transformer.benchmark.configuration import BenchmarkConfig
from vanilla_transformer.benchmark.machine import check_import_order, describe_machine
from vanilla_transformer.benchmark.real_sentences import measure_real
from vanilla_transformer.benchmark.roofline import peak_operations, read_bandwidth
from vanilla_transformer.benchmark.synthetic import measure_synthetic
from vanilla_transformer.benchmark.systems import skip_reasons
from vanilla_transformer.benchmark.thresholds import check_thresholds
from vanilla_transformer.comparison.result_file import write_result
from vanilla_transformer.inference.model_folder import default_device


def benchmark_decoding(config: BenchmarkConfig, on_progress: Callable[[str], None]) -> dict[str, Any]:
    """Measure everything, and write it to `config.output`.

    Args:
        on_progress: called with a line for each part that is done.

    Returns:
        `settings`, `machine`, `skipped` (system → reason), `roofline`, `synthetic` (`measure_synthetic` of each size),
        `real` (see `measure_real`; `None`: skipped) and `thresholds` (see `check_thresholds`).

    Raises:
        ValueError: CTranslate2 is wanted and not installed; and as the parts.
        RuntimeError: torch was imported before CTranslate2.
    """
    device = default_device() if config.device == "auto" else torch.device(config.device)
    reasons = skip_reasons(config.precisions, device, config.ctranslate2)
    if config.ctranslate2:
        check_import_order(list(sys.modules))
    names = [name for name, reason in reasons.items() if reason is None]
    bandwidth = read_bandwidth(config.roofline.read_mebibytes * 2**20, device, config.roofline.repeats)
    peaks = peak_operations(config.roofline, device)
    on_progress("roofline of the machine")
    synthetic = [measure_synthetic(config, size, names, device, peaks, on_progress) for size in config.sizes]
    real = None
    if config.real.model is not None:
        real = measure_real(config.real, config.timing, names, device, on_progress)
    results = {
        "machine": describe_machine(device),
        "skipped": {name: reason for name, reason in reasons.items() if reason is not None},
        "roofline": {"bandwidth": bandwidth, "peaks": peaks},
        "synthetic": synthetic,
        "real": real,
        "thresholds": check_thresholds(synthetic, real, config.thresholds),
    }
    settings, output = asdict(config), Path(config.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_result(output, settings, results)
    return {"settings": settings, **results}
