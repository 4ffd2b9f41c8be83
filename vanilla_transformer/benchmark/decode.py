# SPDX-License-Identifier: Apache-2.0
"""The benchmark of decoding as a whole."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from vanilla_transformer.benchmark.configuration import BenchmarkConfig
from vanilla_transformer.benchmark.machine import check_import_order, describe_machine
from vanilla_transformer.benchmark.roofline import peak_operations, read_bandwidth
from vanilla_transformer.benchmark.sentences import measure_sentences
from vanilla_transformer.benchmark.synthetic import measure_cells
from vanilla_transformer.benchmark.systems import names_of_contenders
from vanilla_transformer.benchmark.verdicts import judge
from vanilla_transformer.comparison.result_file import write_result
from vanilla_transformer.inference.model_folder import default_device

MIB = 2**20


def benchmark_decoding(config: BenchmarkConfig, on_progress: Callable[[str], None]) -> dict[str, Any]:
    """Measure everything, and write it to `config.output`.

    Args:
        on_progress: called with a line for each part that is done.

    Returns:
        `settings`, `machine`, `left_out` (contender → reason), `limits`, `sizes` (see `measure_cells`), `real` (see
        `measure_sentences`; `None`: left out) and `bars` (see `judge`).

    Raises:
        ValueError: CTranslate2 is wanted and not installed; what the parts raise.
        RuntimeError: torch was imported before CTranslate2.
    """
    device = default_device() if config.device == "auto" else torch.device(config.device)
    reasons = names_of_contenders(config.precisions, device, config.ctranslate2)
    if config.ctranslate2:
        check_import_order(list(sys.modules))
    names = [name for name, reason in reasons.items() if reason is None]
    repeats = config.limits.repeats
    limits = {
        "bandwidth": read_bandwidth(config.limits.read_mebibytes * MIB, device, repeats),
        "peaks": peak_operations(config.limits, device),
    }
    on_progress("limits of the machine")
    sizes = measure_cells(config, names, device, limits["peaks"], on_progress)
    real = None
    if config.real.model is not None:
        real = measure_sentences(config.real, config.timing, names, device, on_progress)
    results = {
        "machine": describe_machine(device),
        "left_out": {name: reason for name, reason in reasons.items() if reason is not None},
        "limits": limits,
        "sizes": sizes,
        "real": real,
        "bars": judge(sizes, real, config.bars),
    }
    output = Path(config.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_result(output, config.to_dict(), results)
    return {"settings": config.to_dict(), **results}
