# SPDX-License-Identifier: Apache-2.0
"""The facts of a model card, as plain values."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from huggingface_hub.utils import validate_repo_id


@dataclass(frozen=True)
class Score:
    """One figure of an evaluation; `signature` is sacreBLEU's, for its metrics."""

    dataset: str
    metric: str
    value: float
    signature: str | None = None


@dataclass(frozen=True, kw_only=True)
class ComparedModel:
    """One row of a comparison; `name` such as "RNN"."""

    name: str
    parameters: int
    updates: int
    training_seconds: float
    scores: Sequence[Score]

    @property
    def metrics(self) -> list[tuple[str, str]]:
        """Dataset and metric of each score."""
        return [(score.dataset, score.metric) for score in self.scores]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Models with the same training data, vocabulary, batches and decoding.

    Args:
        models: the card's own first.
        difference: a sentence on the difference of the scores, and its significance.

    Raises:
        ValueError: fewer than two models, or models with scores on other data or by other metrics.
    """

    models: Sequence[ComparedModel]
    difference: str

    def __post_init__(self):
        if len(self.models) < 2:
            raise ValueError(f"a comparison needs at least two models, {len(self.models)} given")
        first, *others = self.models
        for other in others:
            if other.metrics != first.metrics:
                raise ValueError(
                    f"{first.name} and {other.name} cannot be compared: scored by {first.metrics} and {other.metrics}"
                )


@dataclass(frozen=True, kw_only=True)
class ModelCardFacts:
    """All facts of a card, as plain text: the card shows markup as it is. None or empty: unknown.

    Raises:
        ValueError: languages or datasets given as one string; a dataset or base_model that is no valid id.
    """

    model_name: str  # id on the Hub, or a name
    parameters: int  # tied ones count once
    model_type: str = "vanilla_transformer"
    base_model: str | None = None  # that was fine-tuned: id on the Hub, or a name
    base_model_on_hub: bool = False  # whether it is an id
    example_input: str = "One line of the source."  # for the code in the card, in the form of the training data
    recipe: Mapping[str, Any] = field(default_factory=dict)  # hyperparameters; all of it is published, so no paths
    languages: Sequence[str] = ()  # ISO 639, the source's first; two or more make the model a translator
    data_description: str | None = None
    data_license: str | None = None
    datasets: Sequence[str] = ()  # ids on the Hub of the training data
    weights_license: str | None = None  # the Hub's identifier; independent of the licence of the code
    pairs: int | None = None  # of the training data
    updates: int | None = None
    training_seconds: float | None = None  # of the updates alone
    devices: int | None = None  # that trained in parallel
    sustained_flops: float | None = None  # operations per second of one device; see `training.export`
    hardware: str | None = None  # such as "1 x NVIDIA H200"
    torch_version: str | None = None
    transformers_version: str | None = None
    scores: Sequence[Score] = ()  # in the order of the card
    comparison: Comparison | None = None

    def __post_init__(self):
        for name, example in (("languages", "['en', 'de']"), ("datasets", "['owner/name']")):
            if isinstance(value := getattr(self, name), str):
                raise ValueError(f"{name}={value!r} must be a list, such as {example}")
        for name in [*self.datasets, *([self.base_model] if self.base_model_on_hub else [])]:
            validate_repo_id(name)
