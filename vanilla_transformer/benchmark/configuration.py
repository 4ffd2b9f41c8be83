# SPDX-License-Identifier: Apache-2.0
"""The benchmark of decoding as one YAML file."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub.dataclasses import strict

from vanilla_transformer.configuration_vanilla_transformer import VanillaTransformerConfig
from vanilla_transformer.exporting.marian import check_marian_supports
from vanilla_transformer.packed_linear import PRECISIONS
from vanilla_transformer.training.bounds import at_least
from vanilla_transformer.training.configuration import check_model_section
from vanilla_transformer.training.yaml_sections import build_section, merged, read_yaml

FORMER_SECTIONS = {"bars": "thresholds", "limits": "roofline"}  # former name → name


@strict
@dataclass(kw_only=True)
class TimingConfig:
    """The section `timing`: how a system is timed."""

    repeats: int = at_least(1)  # rounds, which time every system once (A B A B); the median of a system's rounds counts
    pause: float = at_least(0)  # seconds before each timing, until the threads of the system before stop spinning
    fill: float = at_least(0)  # seconds for which a timing repeats its call, at least once


@strict
@dataclass(kw_only=True)
class RooflineConfig:
    """The section `roofline`: how the machine's bandwidth and peak are measured."""

    read_mebibytes: int = at_least(1)  # size of the tensor that is read; more than the caches hold
    product: int = at_least(1)  # rows and columns of the square matrices that are multiplied
    repeats: int = at_least(1)  # of each measurement; the fastest counts


@strict
@dataclass(kw_only=True)
class DecodingConfig:
    """How every system searches."""

    beams: int = at_least(1)
    alpha: float  # of the paper's length penalty, for our search; the paper has 0.6
    length_penalty: float  # of the other systems: they divide a log-probability by length^length_penalty
    early_stopping: bool  # of MarianMT and our search: a sentence ends once as many targets as beams have ended


@strict
@dataclass(kw_only=True)
class RealConfig(DecodingConfig):
    """The section `real`: a trained model on a test set, with sentences of natural lengths.

    Raises:
        ValueError: some of the three paths are given, but not all.
    """

    batch_sizes: list[int] = at_least(1)  # noqa: RUF009 -- declares a field. The fastest of each system counts
    repeats: int = at_least(1)  # rounds over all systems, for each batch size
    max_tokens_beyond_source: int = at_least(1)  # a batch's limit of target length, beyond its longest source
    model: str | None = None  # a model folder; None, as for the files: this part is skipped
    source: str | None = None  # text file, plain or .gz
    reference: str | None = None

    def __post_init__(self):
        paths = ("model", "source", "reference")
        given = [f"real.{name}" for name in paths if getattr(self, name) is not None]
        if given and len(given) < len(paths):
            raise ValueError(f"real.model, real.source and real.reference go together; given: {', '.join(given)}")


@strict
@dataclass(kw_only=True)
class ThresholdsConfig:
    """The section `thresholds`: the least ratio of our speed to a baseline's, as geometric mean or in every case."""

    float32_marian_mean: float  # our fast decoder in float32 over MarianMT
    float32_marian_every: float
    float32_ctranslate2_mean: float  # the same over CTranslate2's float32
    float32_ctranslate2_every: float
    best_ctranslate2_int8_mean: float  # our fastest exact enough precision over CTranslate2's int8
    generate_marian_every: float  # our plain `generate()` over MarianMT's
    real_marian: float  # our fast decoder in float32 on real sentences
    real_ctranslate2: float
    exact_bleu: float  # a precision is exact enough if its BLEU differs from float32's by at most this many points


@strict
@dataclass(kw_only=True)
class BenchmarkConfig:
    """One benchmark.

    Raises:
        ValueError: no size or an unknown one; an unknown precision; a model that MarianMT cannot have.
    """

    output: str  # the JSON file with all results
    device: str  # of the models in torch: "auto" (an accelerator if there is one), "cpu", "cuda", ...
    ctranslate2: bool  # whether to measure CTranslate2, always on the CPU
    precisions: list[str]  # of our fast decoder; the report says which ones the machine lacks
    models: dict[str, Any]  # name → `vocab_size` and fields of `VanillaTransformerConfig`; the weights are random
    sizes: list[str]  # names of the models to measure
    batch_sizes: list[int] = at_least(1)  # noqa: RUF009 -- declares a field
    beams: list[int] = at_least(1)  # noqa: RUF009 -- declares a field. 1: greedy
    source_tokens: int = at_least(1)  # the length of every source
    target_tokens: int = at_least(1)  # the length of every target
    timing: TimingConfig
    roofline: RooflineConfig
    thresholds: ThresholdsConfig
    real: RealConfig

    def __post_init__(self):
        if "float32" not in self.precisions or not set(self.precisions) <= set(PRECISIONS):
            raise ValueError(f"precisions={self.precisions} must be float32 and any of {', '.join(PRECISIONS[1:])}")
        if not self.sizes or not set(self.sizes) <= set(self.models):
            raise ValueError(f"sizes={self.sizes} must name some of the models: {', '.join(self.models)}")
        for name in self.sizes:
            self.model_config(name)

    def model_config(self, size: str) -> VanillaTransformerConfig:
        """The configuration of one of `models`."""
        section = self.models[size]
        if not isinstance(section, dict) or not isinstance(section.get("vocab_size"), int):
            raise ValueError(f"models.{size}={section!r} must be a section with vocab_size and a model's fields")
        try:
            check_model_section({name: value for name, value in section.items() if name != "vocab_size"})
            config = VanillaTransformerConfig(**section)
            check_marian_supports(config)
        except ValueError as error:
            raise ValueError(f"models.{size}: {error}") from error
        return config


def load_benchmark_config(path: str | Path, overrides: list[str] | None = None) -> BenchmarkConfig:
    """Read a YAML file, apply `key=value` overrides, and check everything; sections may have their former names.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not YAML, an unknown or missing key, a wrong type, an impossible value.
    """
    overrides = overrides or []
    for former, name in FORMER_SECTIONS.items():
        overrides = [re.sub(rf"^{former}(?=[.=])", name, override) for override in overrides]
    values = read_yaml(Path(path), overrides)
    for former, name in FORMER_SECTIONS.items():
        if former in values:
            values[name] = merged(values.pop(former), values.get(name, {}))
    return build_section(BenchmarkConfig, values, where="")
