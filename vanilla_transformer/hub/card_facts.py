# SPDX-License-Identifier: Apache-2.0
"""What a model card tells, as plain values."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from huggingface_hub.utils import validate_repo_id


@dataclass(frozen=True)
class Score:
    """One figure of an evaluation; `signature` is sacreBLEU's, where it computed the figure."""

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


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Models that were trained on the same data, vocabulary and batches, and decoded alike.

    Args:
        models: the card's own first.
        difference: a sentence on how the scores differ, and how sure that is.

    Raises:
        ValueError: fewer than two models, or models scored on other data or by other metrics.
    """

    models: Sequence[ComparedModel]
    difference: str

    def __post_init__(self):
        if len(self.models) < 2:
            raise ValueError(f"a comparison needs at least two models, {len(self.models)} given")
        first, *others = self.models
        for other in others:
            if _measures(other) != _measures(first):
                raise ValueError(
                    f"{first.name} and {other.name} cannot be compared: scored by {_measures(first)} and "
                    f"{_measures(other)}"
                )


def _measures(model: ComparedModel) -> list[tuple[str, str]]:
    return [(score.dataset, score.metric) for score in model.scores]


@dataclass(frozen=True, kw_only=True)
class ModelCardFacts:
    """What a card tells. All text is plain: markup in it is shown, not obeyed. None or empty is unknown.

    Args:
        model_name: id on the Hub, or a name.
        parameters: number of weights; tied ones count once.
        model_type: of its configuration.
        base_model: what it was fine-tuned from: an id on the Hub, or a name.
        base_model_on_hub: whether it is an id.
        example_input: a line for the code in the card, written as the training data are.
        recipe: hyperparameters, nested sections allowed. It is published as it is: leave out paths of your machine.
        languages: ISO 639 codes, the source's first; with at least two the card calls the model a translator.
        data_description, data_license: of the training data.
        datasets: ids of the training data on the Hub.
        weights_license: the Hub's identifier of a licence; that of the code says nothing about the weights.
        pairs: of the training data.
        updates: of the optimizer.
        training_seconds: seconds spent in training itself.
        devices: that trained at the same time.
        sustained_flops: floating-point operations per second of one device; see `training.capacity`.
        hardware: such as "1 x NVIDIA H200".
        torch_version, transformers_version: of the training.
        scores: in the order of the card.
        comparison: with another model.

    Raises:
        ValueError: languages or datasets given as one string; a dataset or base_model that cannot be on the Hub.
    """

    model_name: str
    parameters: int
    model_type: str = "vanilla_transformer"
    base_model: str | None = None
    base_model_on_hub: bool = False
    example_input: str = "One line of the source."
    recipe: Mapping[str, Any] = field(default_factory=dict)
    languages: Sequence[str] = ()
    data_description: str | None = None
    data_license: str | None = None
    datasets: Sequence[str] = ()
    weights_license: str | None = None
    pairs: int | None = None
    updates: int | None = None
    training_seconds: float | None = None
    devices: int | None = None
    sustained_flops: float | None = None
    hardware: str | None = None
    torch_version: str | None = None
    transformers_version: str | None = None
    scores: Sequence[Score] = ()
    comparison: Comparison | None = None

    def __post_init__(self):
        for name, example in (("languages", "['en', 'de']"), ("datasets", "['owner/name']")):
            value = getattr(self, name)
            if isinstance(value, str):
                raise ValueError(f"{name}={value!r} must be a list, such as {example}")
        for name in [*self.datasets, *([self.base_model] if self.base_model_on_hub else [])]:
            validate_repo_id(name)
