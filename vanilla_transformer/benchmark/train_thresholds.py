# SPDX-License-Identifier: Apache-2.0
"""Whether training is as fast and as small as it should be; computed from the results alone."""

from typing import Any

from vanilla_transformer.benchmark.thresholds import ratios, threshold
from vanilla_transformer.benchmark.train_configuration import BASELINES, MARIAN, OURS, TrainThresholdsConfig


def best_compiled(cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The cases that differ only in `compiled` as one, with the faster result of each system."""
    merged: dict[Any, dict[str, Any]] = {}
    for case in cases:
        key = case["size"], case["length"], case["precision"], case["threads"]
        best = merged.setdefault(key, {**case, "results": {}})["results"]
        for name, result in case["results"].items():
            best[name] = max(best.get(name, result), result, key=lambda result: result["tokens_per_second"])
    return list(merged.values())


def check_train_thresholds(results: dict[str, Any], required: TrainThresholdsConfig) -> list[dict[str, Any]]:
    """For each threshold a row as `check_thresholds` has; `results` as in `benchmark_training`."""
    found, cases = [], best_compiled(results["cases"])
    shortest = min(case["length"] for case in cases)
    by_size = {size: [case for case in cases if case["size"] == size] for size in {case["size"] for case in cases}}
    for size, ratio in required.marian.items():
        each = ratios(by_size.get(size, []), OURS, MARIAN)
        found.append(threshold(f"{OURS} / {MARIAN}, {size}: every case", ratio, min(each, default=None)))
    for size, ratio in required.best_baseline.items():
        each = [ratio for name in BASELINES for ratio in ratios(by_size.get(size, []), OURS, name)]
        found.append(threshold(f"{OURS} / best baseline, {size}: every case", ratio, min(each, default=None)))
    for size, share in required.bfloat16_peak.items():
        each = [
            case["results"][OURS]["peak_share"]
            for case in by_size.get(size, [])
            if case["precision"] == "bfloat16" and case["length"] == shortest and OURS in case["results"]
        ]
        description = f"{OURS}, {size} in bfloat16: share of the matrix peak, every case"
        found.append(threshold(description, share, min(each, default=None)))
    for precision, memory in results["memory"].items():
        measured = memory[MARIAN] / memory[OURS] if {OURS, MARIAN} <= memory.keys() else None
        found.append(threshold(f"memory of {MARIAN} / {OURS}, {precision}", required.memory, measured))
    ratio = results["corpus"]["ratio"] if results["corpus"] else None
    found.append(threshold(f"{OURS} / Seq2SeqTrainer with {MARIAN}: whole runs", required.corpus, ratio))
    return found
