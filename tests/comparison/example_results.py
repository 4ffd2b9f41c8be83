# SPDX-License-Identifier: Apache-2.0
"""Synthetic results with every part: five models, three seeds, five repeats."""

import math
import random
from typing import Any

from vanilla_transformer.comparison.crossing import find_crossings

MODELS = ["Transformer", "LSTM + attention", "GRU + attention", "LSTM", "Elman with attention"]
MACHINE = {
    "device": "x86_64 cpu, 2 cores",
    "threads": 2,
    "torch": "2.13.0",
    "transformers": "5.24.0",
    "date": "2026-11-25",
}
LENGTHS = [16, 32, 64, 128, 256, 512]
DISTANCES = [4, 8, 16, 32, 64, 128, 256]
TRAINED_AT = 32


def example_results(seed: int = 1) -> dict[str, Any]:
    rng = random.Random(seed)
    return {
        "machines": dict.fromkeys(("speed", "long_range", "quality"), MACHINE),
        "speed": _speed(rng),
        "long_range": _long_range(rng),
        "quality": [
            _quality(rng, "Multi30k English-German", "BLEU", "points", [32.1, 30.2, 29.8, 17.0, 24.4]),
            _quality(rng, "spelling to pronunciation", "word error rate", "%", [34.0, 33.6, 35.5, 48.0, 41.0]),
        ],
    }


def _parameters() -> dict[str, int]:
    return {model: 1_200_000 + 50_000 * place for place, model in enumerate(MODELS)}


def _speed(rng: random.Random) -> dict[str, Any]:
    def speeds(place: int, length: int, batch_size: int, threads: int) -> list[float]:
        speed = 19000 / (1 + length / 900) if place == 0 else (70000 - 9000 * place) * length**-0.3
        speed *= threads ** (0.8 if place == 0 else 0.4) * batch_size ** (0.0 if place == 0 else 0.3)
        return [speed * rng.uniform(0.95, 1.05) for _ in range(5)]

    sizes = [(length, 4096 // length) for length in LENGTHS] + [(128, 1), (512, 1)]
    rows = [
        {
            "model": model,
            "length": length,
            "batch_size": batch_size,
            "precision": precision,
            "threads": threads,
            "attention": None if place else "eager",
            "tokens_per_second": speeds(place, length, batch_size, threads),
        }
        for length, batch_size in sizes
        for precision in ("float32", "bfloat16")
        for threads in (1, 2)
        for place, model in enumerate(MODELS)
        if (precision, threads) == ("bfloat16", 2) or length in (32, 512)
    ]
    kernels = {
        model: {
            "layer": "recurrent" if place else "self-attention",
            "attention": None if place else "eager",
            "operator": "aten::mm",
            "share": 0.5,
            "calls_per_token": 540.0 if place > 3 else 0.0,
            "calls_per_token_padded": 610.0 if place else 0.0,
        }
        for place, model in enumerate(MODELS)
    }
    return {
        "device": "cpu",
        "training": {"precision": "bfloat16", "threads": 2},
        "left_out": [],
        "parameters": _parameters(),
        "kernels": kernels,
        "rows": rows,
    }


def _long_range(rng: random.Random) -> dict[str, Any]:
    keeps = [0.995, 0.97, 0.96, 0.9, 0.6]  # of the gradient's norm, for each step back
    chance = {"copy": 0.125, "recall": 0.125, "parity": 0.5}
    gradients = [
        {"model": model, "seed": seed, "when": when, "norms": [rng.uniform(0.7, 1.3) * keep**d for d in range(129)]}
        for model, keep in zip(MODELS, keeps, strict=True)
        for seed in range(3)
        for when in ("initialisation", "after training")
    ]
    gradients[-1]["norms"][-20:] = [0.0] * 20

    def accuracy(task: str, place: int, distance: int) -> float:
        holds_to = 8 * 2 ** (4 - place) if (task == "parity") != (place == 0) else 12
        guess = chance[task]
        return min(1.0, max(0.0, guess + (0.99 - guess) / (1 + (distance / holds_to) ** 4) + rng.uniform(-0.02, 0.02)))

    tasks = [
        {
            "task": task,
            "model": model,
            "seed": seed,
            "trained_at": TRAINED_AT,
            "updates": 2000,
            "seconds": 100.0 + 30 * place,
            "accuracy": {str(distance): accuracy(task, place, distance) for distance in DISTANCES},
        }
        for task in ("copy", "recall", "parity")
        for place, model in enumerate(MODELS)
        for seed in range(3)
    ]
    return {
        "device": "cpu",
        "test_sequences": 256,
        "parameters": _parameters(),
        "chance": chance,
        "gradients": gradients,
        "tasks": tasks,
    }


def _quality(rng: random.Random, task: str, metric: str, unit: str, final: list[float]) -> dict[str, Any]:
    """The scores in the end are `final`; the Transformer gains more from a doubling of the minutes than the others."""

    def budget(minutes: float, updates: int | None = None) -> dict[str, Any]:
        lost = [math.log2(2 / minutes) * (6 if place == 0 else 4) for place in range(len(MODELS))]
        scores = [end - loss if metric == "BLEU" else end + loss for end, loss in zip(final, lost, strict=True)]
        return {
            "budget": "equal updates" if updates else "equal time",
            "amount": f"{updates} updates" if updates else f"{minutes} minutes",
            "updates": updates,
            "minutes": None if updates else minutes,
            "models": {
                model: {
                    "score": score,
                    "interval": [score - 1.1, score + 1.2],
                    "parameters": 1_500_000,
                    "updates": updates or round(300 * minutes) - 30 * place,
                    "epochs": 3.2,
                    "mixed_precision": "no",
                    "training_seconds": 60 * minutes,
                    "target_tokens_per_second": 5000.0 - 300 * place,
                }
                for place, (model, score) in enumerate(zip(MODELS, scores, strict=True))
            },
            "paired": [
                {"model": model, "baseline": "Transformer", "difference": score - scores[0], "p_value": p}
                | {"standard_error": 0.4}
                for model, score, p in zip(MODELS[1:], scores[1:], [0.012, 0.004, 0.0005, 0.001], strict=True)
            ],
            "by_length": [
                {
                    "bucket": bucket,
                    "sentences": 1000 // (place + 1),
                    "scores": {m: s - 2 * place + rng.uniform(-1, 1) for m, s in zip(MODELS, scores, strict=True)},
                }
                for place, bucket in enumerate(["1-5", "6-10", "11-15", "16-20", "21-40"])
            ],
            "examples": [
                {
                    "source": "a | man <b>sleeps</b> on *grass*",
                    "reference": "ein mann schläft auf gras",
                    "outputs": {model: f"ein mann | schläft `{place}`" for place, model in enumerate(MODELS)},
                }
            ],
        }

    result = {
        "task": task,
        "metric": metric,
        "higher_is_better": metric == "BLEU",
        "unit": unit,
        "signature": "nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:2.6.0" if metric == "BLEU" else None,
        "sentences": 1000,
        "vocab_size": 8000,
        "budgets": [budget(1.5, 450), *map(budget, (0.5, 1.0, 2.0))],
    }
    return result | {"crossings": find_crossings(result)}
