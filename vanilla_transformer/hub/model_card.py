# SPDX-License-Identifier: Apache-2.0
"""The model card: model_card.md at the top of the repository, filled with the facts of a run."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from vanilla_transformer.comparison.markdown import escape

TEMPLATE = "model_card.md"


@dataclass(frozen=True)
class Score:
    """One figure of an evaluation; `signature` is sacreBLEU's, where it computed the figure."""

    dataset: str
    metric: str
    value: float
    signature: str | None = None


@dataclass(frozen=True, kw_only=True)
class ModelCardFacts:
    """What a card tells. All text is plain: markup in it is shown, not obeyed. What is None or empty is left out.

    Args:
        model_name: id on the Hub, or a name.
        parameters: number of weights; tied ones count once.
        model_type: of its configuration.
        recipe: hyperparameters, nested sections allowed. It is published as it is: leave out paths of your machine.
        languages: ISO 639 codes, the source's first; with at least two the card calls the model a translator.
        data_description, data_license: of the training data.
        weights_license: the Hub's identifier of a licence; that of the code says nothing about the weights.
        pairs: of the training data.
        updates: of the optimizer.
        training_seconds: seconds spent in training itself.
        hardware: such as "1 x NVIDIA H200".
        torch_version, transformers_version: of the training.
        scores: in the order of the card.

    Raises:
        ValueError: languages given as one string.
    """

    model_name: str
    parameters: int
    model_type: str = "vanilla_transformer"
    recipe: Mapping[str, Any] = field(default_factory=dict)
    languages: Sequence[str] = ()
    data_description: str | None = None
    data_license: str | None = None
    weights_license: str | None = None
    pairs: int | None = None
    updates: int | None = None
    training_seconds: float | None = None
    hardware: str | None = None
    torch_version: str | None = None
    transformers_version: str | None = None
    scores: Sequence[Score] = ()

    def __post_init__(self):
        if isinstance(self.languages, str):
            raise ValueError(f"languages={self.languages!r} must be a list of codes, such as ['en', 'de']")


def write_model_card(folder: str | Path, *, facts: ModelCardFacts) -> Path:
    """Write `folder/README.md`, over one that is there.

    Returns:
        The path of the card.

    Raises:
        FileNotFoundError: no such folder.
    """
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"model folder {folder} does not exist")
    card = ModelCard.from_template(_card_data(facts), template_str=_find_template().read_text("utf-8"), **_text(facts))
    path = Path(folder) / "README.md"
    path.write_text(str(card).rstrip() + "\n", encoding="utf-8", newline="\n")
    return path


def _find_template() -> Path:
    """Beside this module in an installed package, at the top of the repository in a checkout."""
    places = [Path(__file__).with_name(TEMPLATE), Path(__file__).parents[2] / TEMPLATE]
    for place in places:
        if place.is_file():
            return place
    raise FileNotFoundError(f"the template of the model card is in neither {places[0]} nor {places[1]}")


def _card_data(facts: ModelCardFacts) -> ModelCardData:
    """The metadata block."""
    is_translator = len(facts.languages) > 1
    return ModelCardData(
        language=list(facts.languages) or None,
        license=facts.weights_license,
        library_name="transformers",
        pipeline_tag="translation" if is_translator else None,
        tags=list(dict.fromkeys(["vanilla_transformer", facts.model_type])),  # the package, then the model
        model_name=facts.model_name if facts.scores else None,  # the heading of the scores in the model index
        eval_results=[_eval_result(score, is_translator) for score in facts.scores] or None,
    )


def _eval_result(score: Score, is_translator: bool) -> EvalResult:
    dataset = _one_line(score.dataset)
    return EvalResult(
        task_type="translation" if is_translator else "text2text-generation",
        dataset_type=dataset,  # results are grouped by it: one type for all would put them under the first's name
        dataset_name=dataset,
        metric_type=re.sub(r"\W+", "_", score.metric.lower()).strip("_"),
        metric_name=_one_line(score.metric),
        metric_value=score.value,
        metric_args={"signature": score.signature} if score.signature else None,
    )


def _text(facts: ModelCardFacts) -> dict[str, Any]:
    """The variables of the template, escaped; None or empty for what is unknown."""
    versions = [("torch", facts.torch_version), ("transformers", facts.transformers_version)]
    return {
        "name": escape(facts.model_name),
        "model_type": facts.model_type,
        "name_in_python": json.dumps(facts.model_name, ensure_ascii=False),
        "languages": escape(" → ".join(facts.languages)),
        "data": escape(facts.data_description or ""),
        "data_license": escape(facts.data_license or ""),
        "weights_license": escape(facts.weights_license or ""),
        "pairs": None if facts.pairs is None else f"{facts.pairs:,}",
        "parameters": f"{facts.parameters:,}",
        "updates": None if facts.updates is None else f"{facts.updates:,}",
        "training_time": None if facts.training_seconds is None else _duration(facts.training_seconds),
        "hardware": escape(facts.hardware or ""),
        "versions": escape(", ".join(f"{name} {version}" for name, version in versions if version is not None)),
        "recipe": list(_rows(facts.recipe)),
        "scores": [
            {"dataset": escape(score.dataset), "metric": escape(score.metric), "value": f"{score.value:#.4g}"}
            for score in facts.scores
        ],
        "signatures": [
            {"dataset": escape(score.dataset), "metric": escape(score.metric), "text": _code(score.signature)}
            for score in facts.scores
            if score.signature
        ],
    }


def _rows(recipe: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested sections as dotted names."""
    for key, value in recipe.items():
        if isinstance(value, Mapping):
            yield from _rows(value, f"{prefix}{key}.")
        elif value is not None:
            yield escape(f"{prefix}{key}"), escape(value if isinstance(value, str) else json.dumps(value))


def _duration(seconds: float) -> str:
    return f"{seconds:,.0f} seconds ({timedelta(seconds=round(seconds))})"


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _code(text: str) -> str:
    """A code span: its fence is longer than any run of backticks within."""
    text = _one_line(text)
    longest = max(map(len, re.findall("`+", text)), default=0)
    space = " " if longest else ""
    return f"{'`' * (longest + 1)}{space}{text}{space}{'`' * (longest + 1)}"
