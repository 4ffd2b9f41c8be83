# SPDX-License-Identifier: Apache-2.0
"""The benchmark of training as a whole."""

import ctypes
import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch

from vanilla_transformer.benchmark.machine import describe_machine, lacks_precision
from vanilla_transformer.benchmark.memory import in_own_process, reset_peak, resident_bytes
from vanilla_transformer.benchmark.random_model import random_sources
from vanilla_transformer.benchmark.roofline import matrix_peak
from vanilla_transformer.benchmark.timing import measure_in_turns
from vanilla_transformer.benchmark.train_configuration import TrainBenchmarkConfig
from vanilla_transformer.benchmark.train_corpus import measure_corpus_runs
from vanilla_transformer.benchmark.train_systems import MARIAN, OURS, RNN, TrainStep, skip_reasons
from vanilla_transformer.benchmark.train_thresholds import check_train_thresholds
from vanilla_transformer.comparison.result_file import write_result
from vanilla_transformer.inference.model_folder import default_device


def benchmark_training(config: TrainBenchmarkConfig, on_progress: Callable[[str], None]) -> dict[str, Any]:
    """Measure everything, and write it to `config.output`.

    Returns:
        `settings`, `machine`, `skipped` (system → reason), `cases` (see `measure_case`), `memory` (precision → system →
        peak bytes of an update), `corpus` (see `measure_corpus_runs`; `None`: skipped) and `thresholds`.

    Raises:
        ValueError: a precision that the device lacks.
    """
    device = default_device() if config.device == "auto" else torch.device(config.device)
    for precision in config.precisions:
        reason = lacks_precision(precision, device)
        if reason is not None:
            raise ValueError(f"precisions={config.precisions}: {reason}")
    skipped = skip_reasons(config.systems)
    names = [name for name in config.systems if name not in skipped]
    output, cases = Path(config.output), []
    output.parent.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {"machine": describe_machine(device), "skipped": skipped, "cases": cases}
    for threads, size, precision, length in product(config.threads, config.sizes, config.precisions, config.lengths):
        with cpu_threads(threads):
            peak = matrix_peak(config.product, precision, device)
            for is_compiled in config.compiled:
                case = measure_case(config, names, size, precision, length, is_compiled, device, peak)
                cases.append({"threads": threads, **case})
                on_progress(case_title(cases[-1]))
        write_result(output, asdict(config), results)  # a long run leaves what it has measured so far
    results["memory"] = {name: update_memory(config, names, name, device) for name in config.precisions}
    with cpu_threads(max(config.threads)):
        results["corpus"] = measure_corpus_runs(config, on_progress) if config.corpus.source else None
    results["thresholds"] = check_train_thresholds(results, config)
    write_result(output, asdict(config), results)
    return {"settings": asdict(config), **results}


def case_title(case: dict[str, Any]) -> str:
    """Such as "base 512 bfloat16, 2 threads"."""
    compiled = ", compiled" if case["compiled"] else ""
    return f"{case['size']} {case['length']} {case['precision']}{compiled}, {case['threads']} threads"


@contextmanager
def cpu_threads(threads: int) -> Iterator[None]:
    """torch with this number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    yield
    torch.set_num_threads(before)


def random_batch(config: TrainBenchmarkConfig, size: str, length: int, device: torch.device) -> dict[str, torch.Tensor]:
    """`input_ids` and `labels` `(batch, length)`, without padding."""
    section = config.models[size]
    ids = random_sources(section["vocab_size"], max(1, section["batch_tokens"] // length), length)
    input_ids = torch.tensor(ids, device=device)
    return {"input_ids": input_ids, "labels": input_ids.flip(1).contiguous()}


def measure_case(
    config: TrainBenchmarkConfig,
    names: list[str],
    size: str,
    precision: str,
    length: int,
    is_compiled: bool,
    device: torch.device,
    peak: float,
) -> dict[str, Any]:
    """Time updates of all systems in turns.

    Args:
        peak: operations per second of a square product on this device.

    Returns:
        The case, and its `results`: system → `seconds` of an update in each round, `tokens_per_second` (both sides),
        `sentences_per_second`, `peak_share` (operations of the products, 6 x parameters x tokens of a side, per second
        and `peak`).
    """
    batch = random_batch(config, size, length, device)
    steps = {name: TrainStep(name, config, size, length, device, precision) for name in names}
    for step in steps.values():
        if is_compiled:
            step.compile()
        step(batch, 1)  # allocates Adam's moments, and compiles
    systems = {name: partial(nullcontext, partial(step, batch)) for name, step in steps.items()}
    measured = measure_in_turns(systems, 1, config.timing)
    sentences, results = len(batch["labels"]), {}
    for name, measurement in measured.items():
        parameters = sum(parameter.numel() for parameter in steps[name].model.parameters())
        operations = 6 * parameters * sentences * length
        results[name] = {
            "seconds": measurement.seconds,
            "tokens_per_second": 2 * sentences * length / measurement.median,
            "sentences_per_second": sentences / measurement.median,
            "peak_share": operations / measurement.median / peak,
        }
    case = {"size": size, "length": length, "precision": precision, "compiled": is_compiled, "peak": peak}
    return case | {"batch_size": sentences, "results": results}


def update_memory(
    config: TrainBenchmarkConfig, names: list[str], precision: str, device: torch.device
) -> dict[str, int] | None:
    """Peak bytes of two updates of `memory_size` by each system, weights and moments included; `None`: not on Linux."""
    if device.type == "cpu" and sys.platform != "linux":
        return None
    measured = (name for name in names if name in (OURS, RNN, MARIAN) or device.type != "cpu")
    return {name: in_own_process(peak_bytes, config, name, precision, device) for name in measured}


def peak_bytes(config: TrainBenchmarkConfig, name: str, precision: str, device: torch.device) -> int:
    """Of one system, in this process."""
    size, length = config.memory_size, min(config.lengths)
    before = resident_bytes()
    step = TrainStep(name, config, size, length, device, precision)
    batch = random_batch(config, size, length, device)
    if device.type != "cpu":
        torch.cuda.reset_peak_memory_stats(device)
        step(batch, 2)
        return torch.cuda.max_memory_allocated(device)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    reset_peak()
    step(batch, 2)
    return resident_bytes("VmHWM") - before
