# SPDX-License-Identifier: Apache-2.0
"""Whether training is as fast and as small as it should be; computed from the results alone."""

from typing import Any

from vanilla_transformer.benchmark.thresholds import ratios, threshold
from vanilla_transformer.benchmark.train_configuration import TrainBenchmarkConfig
from vanilla_transformer.benchmark.train_systems import MARIAN, OURS


def check_train_thresholds(results: dict[str, Any], config: TrainBenchmarkConfig) -> list[dict[str, Any]]:
    """For each threshold `ratio` (its description), `required`, `measured` and `is_met`, as `check_thresholds`."""
    cases, required, found = results["cases"], config.thresholds, []
    for size, ratio in required.marian.items():
        each = ratios([case for case in cases if case["size"] == size], OURS, MARIAN)
        found.append(threshold(f"{OURS} / {MARIAN}, {size}: every case", ratio, min(each, default=None)))
    for size, share in required.bfloat16_peak.items():
        shares = [
            case["results"][OURS]["peak_share"]
            for case in cases
            if (case["size"], case["length"], case["precision"]) == (size, min(config.lengths), "bfloat16")
            and OURS in case["results"]
        ]
        found.append(threshold(f"{OURS}, {size} in bfloat16: share of the peak", share, max(shares, default=None)))
    for precision, memory in results["memory"].items():
        measured = memory[MARIAN] / memory[OURS] if memory and {OURS, MARIAN} <= memory.keys() else None
        description = f"memory of {MARIAN} / {OURS}, {config.memory_size} in {precision}"
        found.append(threshold(description, 1 / required.memory, measured))
    corpus = results["corpus"]
    measured = None if corpus is None else corpus["ratio"]
    found.append(threshold(f"{OURS} / Seq2SeqTrainer with {MARIAN}: tokens of whole runs", required.corpus, measured))
    return found
