# SPDX-License-Identifier: Apache-2.0
"""A benchmark of training of a second, and example results."""

from pathlib import Path
from typing import Any

from vanilla_transformer.benchmark.train_configuration import TrainBenchmarkConfig, load_train_benchmark

FILE = Path(__file__).parents[2] / "configs" / "benchmark_train.yaml"
TINY_MODEL = (
    "{vocab_size: 24, batch_tokens: {6: 12, 8: 16}, transformer: {d_model: 16, d_ff: 32, num_layers: 1, num_heads: 2}, "
    "rnn: {model_type: rnn_seq2seq, embedding_size: 8, hidden_size: 8}}"
)
TINY = [
    f"models={{tiny: {TINY_MODEL}}}",
    "sizes=[tiny]",
    "lengths=[6, 8]",
    "threads=[1]",
    "eager_up_to=6",
    "product=16",
    "memory_size=tiny",
    "memory_tokens=12",
    "timing={repeats: 2, pause: 0.0, fill: 0.0}",
    "corpus.size=tiny",
    "corpus.vocab_size=280",
    "corpus.batch_tokens=100",
    "corpus.updates=3",
    "corpus.repeats=1",
]


def tiny_benchmark(*overrides: str) -> TrainBenchmarkConfig:
    given = {override.partition("=")[0] for override in overrides}
    return load_train_benchmark(FILE, [*(each for each in TINY if each.partition("=")[0] not in given), *overrides])


def case(speeds: dict[str, float], **changes: Any) -> dict[str, Any]:
    """A case of tokens per second by system; each has a share of the peak of a thousandth of it."""
    results = {
        name: {
            "seconds": [1.0],
            "tokens_per_second": rate,
            "sentences_per_second": rate / 10,
            "peak_share": rate / 1000,
        }
        for name, rate in speeds.items()
    }
    identity = {"size": "small", "precision": "bfloat16", "length": 24, "compiled": False, "threads": 1}
    return {**identity, "peak": 5e9, "no_memory": [], "results": results, **changes}
