# SPDX-License-Identifier: Apache-2.0
"""The benchmark of training: updates on sentences of one length, their memory, then whole runs on real text."""

import gc
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch

from vanilla_transformer.benchmark.machine import describe_machine, lacks_precision
from vanilla_transformer.benchmark.memory import in_own_process, peak_of, reset_peak
from vanilla_transformer.benchmark.roofline import matrix_peak
from vanilla_transformer.benchmark.timing import measure_in_turns
from vanilla_transformer.benchmark.train_configuration import RNN, TrainBenchmarkConfig
from vanilla_transformer.benchmark.train_systems import TrainStep, random_batch, skip_reasons
from vanilla_transformer.benchmark.train_thresholds import check_train_thresholds
from vanilla_transformer.comparison.result_file import write_result
from vanilla_transformer.comparison.threads import cpu_threads
from vanilla_transformer.inference.model_folder import default_device


def benchmark_training(config: TrainBenchmarkConfig, on_progress: Callable[[str], None]) -> dict[str, Any]:
    """Measure everything, and write it to `config.output`, after each case what there is until then.

    Args:
        on_progress: called with a line for each part that is done.

    Returns:
        `settings`, `machine`, `skipped` (system → reason), `cases` (see `measure_case`), `memory` (precision → system →
        peak bytes of an update; empty where they cannot be measured), `corpus` (see `measure_corpus_runs`; `None`:
        skipped) and `thresholds` (see `check_train_thresholds`).

    Raises:
        ValueError: a precision that the device lacks.
    """
    device = default_device() if config.device == "auto" else torch.device(config.device)
    for precision in config.precisions:
        if reason := lacks_precision(precision, device):
            raise ValueError(f"precisions={config.precisions}: {reason}")
    settings, output, skipped = asdict(config), Path(config.output), skip_reasons(config.systems)
    names = [name for name in config.systems if name not in skipped]
    results: dict[str, Any] = {"machine": describe_machine(device), "skipped": skipped, "cases": []}
    output.parent.mkdir(parents=True, exist_ok=True)
    for threads, size, precision, length in product(config.threads, config.sizes, config.precisions, config.lengths):
        with cpu_threads(threads):
            peak = matrix_peak(config.product, precision, device, config.timing.repeats)
            for is_compiled in config.compiled:
                case = measure_case(config, names, size, precision, length, is_compiled, device, peak)
                results["cases"].append(case)
                shown = (f"{name} {result['tokens_per_second']:,.0f}" for name, result in case["results"].items())
                on_progress(f"{case_title(case)}: {', '.join(shown)} tokens/s")
                write_result(output, settings, results)
                torch.compiler.reset()  # graphs of one case count against the next one's limit of recompilations
                gc.collect()  # before the next systems are there
                if device.type != "cpu":
                    torch.accelerator.empty_cache()
    with cpu_threads(max(config.threads)):
        results["memory"] = {name: update_memory(config, names, name, device) for name in config.precisions}
        on_progress("memory")
        results["corpus"] = None
        if config.corpus.source is not None:
            from vanilla_transformer.benchmark.train_corpus import measure_corpus_runs  # needs accelerate and datasets

            results["corpus"] = measure_corpus_runs(config, on_progress)
    results["thresholds"] = check_train_thresholds(results, config.thresholds)
    write_result(output, settings, results)
    return {"settings": settings, **results}


def case_title(case: dict[str, Any]) -> str:
    """Such as "base, 512 tokens, bfloat16, 2 threads"."""
    threads = f"{case['threads']} thread{'s' * (case['threads'] > 1)}{', compiled' * case['compiled']}"
    return f"{case['size']}, {case['length']} tokens, {case['precision']}, {threads}"


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
        peak: operations per second of a square product on this device, in this precision.

    Returns:
        `size`, `precision`, `length`, `compiled`, `threads`, `peak`, `no_memory` (systems that do not fit), and
        `results`: system → `seconds` of an update in each round, `tokens_per_second` of both sides,
        `sentences_per_second`, and `peak_share`: 6 x parameters x tokens of a side, per second and `peak`.
    """
    tokens = config.batch_tokens(size, length)
    batch = random_batch(config.models[size]["vocab_size"], tokens, length, device)
    steps, no_memory = {}, []
    for name in names:
        if is_compiled and name == RNN:
            continue  # torch.compile would unroll its loop over the tokens
        try:
            step = TrainStep(name, config, size, length, device, precision)
            if is_compiled:
                step.compile()
            step(batch, 1 + is_compiled)  # compiles, and allocates Adam's moments
            steps[name] = step
        except torch.OutOfMemoryError:
            no_memory.append(name)
    systems = {name: partial(nullcontext, partial(step, batch)) for name, step in steps.items()}
    results: dict[str, Any] = {}
    for name, measurement in measure_in_turns(systems, 1, config.timing, warms_up=False).items():
        parameters = sum(parameter.numel() for parameter in steps[name].model.parameters())
        results[name] = {
            "seconds": measurement.seconds,
            "tokens_per_second": 2 * batch["labels"].numel() / measurement.median,
            "sentences_per_second": len(batch["labels"]) / measurement.median,
            "peak_share": 6 * parameters * batch["labels"].numel() / measurement.median / peak,
        }
    case = {"size": size, "precision": precision, "length": length, "compiled": is_compiled}
    return case | {"threads": torch.get_num_threads(), "peak": peak, "no_memory": no_memory, "results": results}


def update_memory(
    config: TrainBenchmarkConfig, names: list[str], precision: str, device: torch.device
) -> dict[str, int]:
    """Peak bytes of each system's second update, with weights, gradients and moments, in a process of its own."""
    if device.type != "cuda" and (device.type != "cpu" or sys.platform != "linux"):
        return {}
    return {name: in_own_process(update_peak, config, name, precision, device) for name in names}


def update_peak(config: TrainBenchmarkConfig, name: str, precision: str, device: torch.device) -> int:
    """Of one system in this process, beyond the imported libraries."""
    size, length = config.memory_size, min(config.lengths)
    before = reset_peak()
    step = TrainStep(name, config, size, length, device, precision)
    batch = random_batch(config.models[size]["vocab_size"], config.memory_tokens, length, device)
    step(batch, 1)  # allocates Adam's moments
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        step(batch, 1)
        return torch.cuda.max_memory_allocated(device)
    return peak_of(lambda: step(batch, 1)) - before
