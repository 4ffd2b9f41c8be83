# SPDX-License-Identifier: Apache-2.0
"""The benchmark of training as one YAML file."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from vanilla_transformer.benchmark.configuration import TimingConfig
from vanilla_transformer.training.bounds import at_least
from vanilla_transformer.training.configuration import model_config_of
from vanilla_transformer.training.yaml_sections import build_section, read_yaml

DTYPES = ("float32", "bfloat16")


@strict
@dataclass(kw_only=True)
class CorpusRunConfig:
    """The section `corpus`: whole runs on real text, ours beside transformers' Seq2SeqTrainer with MarianMT.

    Raises:
        ValueError: one of the two files is given.
    """

    source: str | None = None  # text file, plain or .gz; None, as for the target: this part is skipped
    target: str | None = None
    size: str  # of `models`
    vocab_size: int = at_least(1)
    batch_tokens: int = at_least(1)  # padded target tokens of our batches; Trainer gets as many pairs, on average
    updates: int = at_least(1)  # of a run
    repeats: int = at_least(1)  # runs of each (A B A B)
    precision: str

    def __post_init__(self):
        if (self.source is None) != (self.target is None):
            raise ValueError("corpus.source and corpus.target go together; give both")


@strict
@dataclass(kw_only=True)
class TrainThresholdsConfig:
    """The section `thresholds`: the least ratio of our speed to MarianMT's, and the least share of the peak."""

    marian: dict[str, float]  # size → ratio in every case of it
    bfloat16_peak: dict[str, float]  # size → share of the matrix peak in bfloat16, at the shortest length
    memory: float  # our peak memory over MarianMT's: at most this, for the size of `memory_size`
    corpus: float  # our tokens per second of a whole run over Seq2SeqTrainer's


@strict
@dataclass(kw_only=True)
class TrainBenchmarkConfig:
    """One benchmark of whole updates: forward pass, backward pass and Adam.

    Raises:
        ValueError: an unknown size, system or precision; a model section that cannot be used.
    """

    output: str  # the JSON file with all results
    device: str  # "auto" (an accelerator if there is one), "cpu", "cuda", ...
    threads: list[int] = at_least(1)  # noqa: RUF009 -- declares a field. Numbers of CPU threads; each is measured
    models: dict[str, Any]  # name → sections `transformer` and `rnn`, `vocab_size` and `batch_tokens`
    sizes: list[str]  # names of the models to measure
    systems: list[str]  # see `train_systems.SYSTEMS`
    lengths: list[int] = at_least(1)  # noqa: RUF009 -- declares a field. Tokens of every source and every target
    precisions: list[str]
    compiled: list[bool] = field(default_factory=lambda: [False])  # by torch.compile: not, or also
    eager_up_to: int = at_least(0)  # on a CPU, attention is the plain product up to this length; beyond it SDPA
    product: int = at_least(1)  # rows and columns of the square matrices whose product is the peak
    memory_size: str  # whose peak memory is measured, in a process of its own for each system
    timing: TimingConfig
    thresholds: TrainThresholdsConfig
    corpus: CorpusRunConfig

    def __post_init__(self):
        from vanilla_transformer.benchmark.train_systems import SYSTEMS

        for name, values, allowed in (
            ("sizes", self.sizes, self.models),
            ("memory_size", [self.memory_size], self.models),
            ("corpus.size", [self.corpus.size], self.models),
            ("systems", self.systems, SYSTEMS),
            ("precisions", self.precisions, DTYPES),
        ):
            for value in values:
                if value not in allowed:
                    raise ValueError(f"{name}={value!r} must be one of {', '.join(allowed)}")
        for size in self.sizes:
            for kind in ("transformer", "rnn"):
                self.model_config(size, kind)

    def model_config(self, size: str, kind: str) -> PreTrainedConfig:
        """The configuration of a size's "transformer" or "rnn"."""
        section = self.models[size]
        try:
            return model_config_of(section[kind], vocab_size=section["vocab_size"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"models.{size}: {error}") from error


def load_train_benchmark(path: str | Path, overrides: list[str] | None = None) -> TrainBenchmarkConfig:
    """Read a YAML file, apply `key=value` overrides, and check everything.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not YAML, an unknown or missing key, a wrong type, an impossible value.
    """
    return build_section(TrainBenchmarkConfig, read_yaml(Path(path), overrides), where="")
