# SPDX-License-Identifier: Apache-2.0
"""Made-up results, from speeds alone."""

from typing import Any

from vanilla_transformer.benchmark.configuration import BarsConfig

BARS = {
    "float32_marian_mean": 2.5,
    "float32_marian_every": 1.2,
    "float32_ctranslate2_mean": 1.3,
    "float32_ctranslate2_every": 1.0,
    "best_ctranslate2_int8_mean": 1.0,
    "generate_marian_every": 1.0,
    "real_marian": 3.0,
    "real_ctranslate2": 1.3,
    "exact_bleu": 0.1,
}


def bars(**changes: float) -> BarsConfig:
    return BarsConfig(**(BARS | changes))


def sizes(*speeds: dict[str, float]) -> list[dict[str, Any]]:
    """One size with a cell for each of `speeds`: tokens per second by contender."""
    cells = [
        {
            "batch_size": 4**number,
            "beams": 1,
            "results": {
                name: {"seconds": [1.0], "tokens_per_second": one, "sentences_per_second": one / 10, "same": 1.0}
                for name, one in cell.items()
            },
            "limits": {"float32": {"roofline_seconds": 0.25, "reached": 0.25}},
        }
        for number, cell in enumerate(speeds)
    ]
    memory = dict.fromkeys(speeds[0], 3 * 2**20)
    return [{"size": "tiny", "memory": memory, "bandwidths": {"float32": 5e9}, "cells": cells}]


def real(**speeds_and_bleu: tuple[float, float]) -> dict[str, Any]:
    """Sentences per second and BLEU by contender."""
    return {
        "sentences": 100,
        "source_tokens": 1200,
        "results": {
            name: {
                "batch_size": 8,
                "seconds": [1.0],
                "sentences_per_second": speed,
                "tokens_per_second": 10 * speed,
                "bleu": bleu,
                "bleu_signature": "a signature",
                "by_batch_size": {8: speed},
            }
            for name, (speed, bleu) in speeds_and_bleu.items()
        },
    }
