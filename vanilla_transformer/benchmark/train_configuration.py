# SPDX-License-Identifier: Apache-2.0
"""The benchmark of training as one YAML file."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from vanilla_transformer.benchmark.configuration import TimingConfig
from vanilla_transformer.training.bounds import at_least
from vanilla_transformer.training.configuration import check_model_section, model_config_of
from vanilla_transformer.training.yaml_sections import build_section, read_yaml

OURS, RNN, MARIAN, TORCH, X_TRANSFORMERS = SYSTEMS = "ours", "our RNN", "MarianMT", "nn.Transformer", "x-transformers"
BASELINES = (MARIAN, TORCH, X_TRANSFORMERS)


@strict
@dataclass(kw_only=True)
class CorpusRunsConfig:
    """The section `corpus`: whole runs on real text, ours beside transformers' Seq2SeqTrainer with MarianMT.

    Raises:
        ValueError: only one of the two files is given.
    """

    source: str | None = None  # text file, plain or .gz; None, as for the target: this part is skipped
    target: str | None = None
    size: str  # of `models`
    vocab_size: int = at_least(1)  # of the BPE that the run learns
    batch_tokens: int = at_least(1)  # padded tokens a side of our batches; Trainer gets as many pairs, on average
    updates: int = at_least(2)  # of a run
    repeats: int = at_least(1)  # runs of each (A B A B)
    mixed_precision: Literal["no", "bf16"]

    def __post_init__(self):
        if (self.source is None) != (self.target is None):
            raise ValueError("corpus.source and corpus.target go together; give both")


@strict
@dataclass(kw_only=True)
class TrainThresholdsConfig:
    """The section `thresholds`: the least ratios, and shares of the matrix peak, in every case of a size."""

    marian: dict[str, float]  # size → our speed over MarianMT's
    best_baseline: dict[str, float]  # size → our speed over the fastest baseline's
    bfloat16_peak: dict[str, float]  # size → our share of the peak in bfloat16, at the shortest length
    memory: float  # MarianMT's peak memory over ours
    corpus: float  # our tokens per second of a whole run over Seq2SeqTrainer's


@strict
@dataclass(kw_only=True)
class TrainBenchmarkConfig:
    """One benchmark of whole updates: forward pass, backward pass and Adam's step.

    Raises:
        ValueError: an unknown size or system; a model section that cannot be used.
    """

    output: str  # the JSON file with all results
    device: str  # "auto" (an accelerator if there is one), "cpu", "cuda", ...
    threads: list[int] = at_least(1)  # noqa: RUF009 -- declares a field. Numbers of CPU threads; each is measured
    models: dict[str, Any]  # name → `vocab_size`, `batch_tokens` (length → tokens a side), `transformer` and `rnn`
    sizes: list[str]  # names of the models to measure
    systems: list[str]  # of `SYSTEMS`
    lengths: list[int] = at_least(2)  # noqa: RUF009 -- declares a field. Tokens of every source and every target
    precisions: list[Literal["float32", "bfloat16"]]
    compiled: list[bool]  # false: as written; true: by torch.compile
    eager_up_to: int = at_least(0)  # on a CPU, attention is the plain product up to this length; beyond it SDPA
    product: int = at_least(1)  # rows and columns of the square matrices whose product is the peak
    memory_size: str  # name of the model whose peak memory is measured, at the shortest length
    memory_tokens: int = at_least(1)  # a side of that batch
    timing: TimingConfig
    thresholds: TrainThresholdsConfig
    corpus: CorpusRunsConfig

    def __post_init__(self):
        for name, values, allowed in (
            ("sizes", self.sizes, self.models),
            ("memory_size", [self.memory_size], self.models),
            ("corpus.size", [self.corpus.size], self.models),
            ("systems", self.systems, SYSTEMS),
        ):
            for value in values:
                if value not in allowed:
                    raise ValueError(f"{name}={value!r} must be one of {', '.join(allowed)}")
        for size in {*self.sizes, self.memory_size, self.corpus.size}:
            for kind in ("transformer", "rnn"):
                self.model_config(size, kind)
            for length in self.lengths:
                self.batch_tokens(size, length)

    def model_config(self, size: str, kind: str) -> PreTrainedConfig:
        """The configuration of a size's "transformer" or "rnn"."""
        section = self.models[size]
        if not isinstance(section, dict) or not isinstance(section.get("vocab_size"), int):
            raise ValueError(f"models.{size}={section!r} must have vocab_size, batch_tokens, transformer and rnn")
        try:
            check_model_section(section[kind])
        except (AttributeError, KeyError, ValueError) as error:
            raise ValueError(f"models.{size}.{kind} must be a model's section: {error}") from error
        return model_config_of(section[kind], vocab_size=section["vocab_size"])

    def batch_tokens(self, size: str, length: int) -> int:
        """Tokens a side of a batch of sentences of this length."""
        tokens = (self.models[size].get("batch_tokens") or {}).get(str(length))
        if not isinstance(tokens, int) or tokens < length:
            raise ValueError(f"models.{size}.batch_tokens.{length}={tokens!r} must be at least {length}")
        return tokens


def load_train_benchmark(path: str | Path, overrides: list[str] | None = None) -> TrainBenchmarkConfig:
    """Read a YAML file, apply `key=value` overrides, and check everything.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not YAML, an unknown or missing key, a wrong type, an impossible value.
    """
    return build_section(TrainBenchmarkConfig, read_yaml(Path(path), overrides), where="")
