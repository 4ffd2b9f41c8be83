# SPDX-License-Identifier: Apache-2.0
"""Example results, from speeds alone."""

from typing import Any

from vanilla_transformer.benchmark.configuration import ThresholdsConfig
from vanilla_transformer.benchmark.systems import FAST

THRESHOLDS = {
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


def thresholds(**changes: float) -> ThresholdsConfig:
    return ThresholdsConfig(**(THRESHOLDS | changes))


def synthetic(*speeds: dict[str, float]) -> list[dict[str, Any]]:
    """A case of one size for each of `speeds`: tokens per second by system."""
    return [
        {
            "batch_size": 4**number,
            "beams": 1,
            "results": {
                name: {"seconds": [1.0], "tokens_per_second": rate, "sentences_per_second": rate / 10, "match": 1.0}
                for name, rate in case.items()
            },
            "roofline": {FAST["float32"]: {"roofline_seconds": 0.25, "fraction": 0.25}},
        }
        for number, case in enumerate(speeds)
    ]


def real(**speeds_and_bleu: tuple[float, float]) -> dict[str, Any]:
    """Sentences per second and BLEU by system."""
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
