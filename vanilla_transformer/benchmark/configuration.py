# SPDX-License-Identifier: Apache-2.0
"""The benchmark of decoding as one YAML file."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from huggingface_hub.dataclasses import strict

from vanilla_transformer.benchmark.baselines import check_can_be_a_peer
from vanilla_transformer.configuration_vanilla_transformer import VanillaTransformerConfig
from vanilla_transformer.packed_linear import PRECISIONS
from vanilla_transformer.training.configuration import check_model_section
from vanilla_transformer.training.yaml_sections import build_section, read_yaml


@strict
@dataclass(kw_only=True)
class TimingConfig:
    """The section `timing`: how one contender is measured once.

    Args:
        repeats: rounds; each measures every contender once (A B A B), and the median of a contender counts.
        pause: before a measurement, in seconds, until the threads of the contender before have stopped spinning.
        fill: calls are timed in a row until they should take so many seconds; one at least.

    Raises:
        ValueError: no repeats; a negative time.
    """

    repeats: int
    pause: float
    fill: float

    def __post_init__(self):
        if self.repeats < 1:
            raise ValueError(f"timing.repeats={self.repeats} must be at least 1")
        for name in ("pause", "fill"):
            if getattr(self, name) < 0:
                raise ValueError(f"timing.{name}={getattr(self, name)} must not be negative")


@strict
@dataclass(kw_only=True)
class LimitsConfig:
    """The section `limits`: what the machine is measured with.

    Args:
        read_mebibytes: of a tensor that no cache holds.
        product: rows and columns of square matrices.
        repeats: of each; the fastest counts.

    Raises:
        ValueError: a number below 1.
    """

    read_mebibytes: int
    product: int
    repeats: int

    def __post_init__(self):
        for name in ("read_mebibytes", "product", "repeats"):
            if getattr(self, name) < 1:
                raise ValueError(f"limits.{name}={getattr(self, name)} must be at least 1")


@strict
@dataclass(kw_only=True)
class RealConfig:
    """The section `real`: a trained model on a whole file, with sentences of natural lengths.

    Args:
        model: its folder; `None`, as for `source` and `reference`: this part is left out.
        source, reference: text files, plain or .gz.
        batch_sizes: sentences, sorted by length; of each contender the fastest counts.
        repeats: rounds over all contenders and batch sizes.
        beams: hypotheses of a sentence.
        alpha: of the paper's length penalty, ours; 0.6 there.
        length_penalty: of the others, transformers' own and CTranslate2's: log-probability / length^length_penalty.
        early_stopping: of MarianMT and ours: a sentence is done when `beams` targets are, as folders of runs have it.
        max_tokens_beyond_source: a batch's longest target is its longest source and so many tokens, for everyone.

    Raises:
        ValueError: some of the three files without the others; a number below 1.
    """

    batch_sizes: list[int]
    repeats: int
    beams: int
    alpha: float
    length_penalty: float
    max_tokens_beyond_source: int
    early_stopping: bool
    model: str | None = None
    source: str | None = None
    reference: str | None = None

    def __post_init__(self):
        files = ("model", "source", "reference")
        given = [f"real.{name}" for name in files if getattr(self, name) is not None]
        if given and len(given) < len(files):
            raise ValueError(f"real.model, real.source and real.reference go together; given: {', '.join(given)}")
        _check_positive("real.batch_sizes", self.batch_sizes)
        for name in ("repeats", "beams", "max_tokens_beyond_source"):
            if getattr(self, name) < 1:
                raise ValueError(f"real.{name}={getattr(self, name)} must be at least 1")


@strict
@dataclass(kw_only=True)
class BarsConfig:
    """The section `bars`: what our speed over a peer's has to reach, as the geometric mean or in every cell.

    Args:
        float32_marian_mean, float32_marian_every: the fast loop in float32 over MarianMT.
        float32_ctranslate2_mean, float32_ctranslate2_every: the same over CTranslate2's float32.
        best_ctranslate2_int8_mean: the fastest exact enough precision over CTranslate2's int8.
        generate_marian_every: the plain `generate()` over MarianMT's.
        real_marian, real_ctranslate2: the fast loop in float32 over the two on real sentences, best batch of each.
        exact_bleu: a precision is exact enough whose BLEU is within so many points of float32's.
    """

    float32_marian_mean: float
    float32_marian_every: float
    float32_ctranslate2_mean: float
    float32_ctranslate2_every: float
    best_ctranslate2_int8_mean: float
    generate_marian_every: float
    real_marian: float
    real_ctranslate2: float
    exact_bleu: float


@strict
@dataclass(kw_only=True)
class BenchmarkConfig:
    """One benchmark.

    Args:
        output: the json file with all results.
        device: of the models in torch: "auto" (an accelerator if there is one), "cpu", "cuda", … .
        ctranslate2: whether to measure CTranslate2, always on the CPU.
        precisions: of the fast loop; one that the machine lacks is left out, and the report says why.
        models: name → `vocab_size` and the fields of `VanillaTransformerConfig`; the weights are random.
        sizes: which of the models to measure.
        batch_sizes: sentences.
        beams: hypotheses of a sentence; 1: greedy.
        source_tokens, target_tokens: of every sentence, exactly.

    Raises:
        ValueError: nothing to measure; an unknown size or precision; a number below 1; a model that no peer can be.
    """

    output: str
    device: str
    ctranslate2: bool
    precisions: list[str]
    models: dict[str, Any]
    sizes: list[str]
    batch_sizes: list[int]
    beams: list[int]
    source_tokens: int
    target_tokens: int
    timing: TimingConfig
    limits: LimitsConfig
    bars: BarsConfig
    real: RealConfig

    def __post_init__(self):
        for name in ("sizes", "batch_sizes", "beams"):
            if not getattr(self, name):
                raise ValueError(f"{name} must name at least one")
        for name in ("batch_sizes", "beams"):
            _check_positive(name, getattr(self, name))
        for name in ("source_tokens", "target_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if "float32" not in self.precisions or not set(self.precisions) <= set(PRECISIONS):
            raise ValueError(f"precisions={self.precisions} must be float32 and what is wanted of {PRECISIONS[1:]}")
        for name in self.sizes:
            if name not in self.models:
                raise ValueError(f"sizes={self.sizes} must be of the models: {', '.join(self.models)}")
            self.model_config(name)

    def model_config(self, size: str) -> VanillaTransformerConfig:
        """The configuration of one of `models`."""
        section = self.models[size]
        if not isinstance(section, dict) or not isinstance(section.get("vocab_size"), int):
            raise ValueError(f"models.{size}={section!r} must be a section with vocab_size and a model's fields")
        fields = {name: value for name, value in section.items() if name != "vocab_size"}
        try:
            check_model_section(fields)
            config = VanillaTransformerConfig(vocab_size=section["vocab_size"], **fields)
            check_can_be_a_peer(config)
        except ValueError as error:
            raise ValueError(f"models.{size}: {error}") from error
        return config

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def _check_positive(name: str, values: list[int]) -> None:
    if not values or min(values) < 1:
        raise ValueError(f"{name}={values} must be numbers of at least 1")


def load_benchmark_config(path: str | Path, overrides: list[str] | None = None) -> BenchmarkConfig:
    """Read a YAML file, apply `key=value` overrides, and check everything.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not YAML, an unknown or missing key, a wrong type, an impossible value.
    """
    return build_section(BenchmarkConfig, read_yaml(Path(path), overrides), where="")
