# SPDX-License-Identifier: Apache-2.0
"""The model card: model_card.md at the top of the repository, filled with the facts of a run."""

import json
import re
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from vanilla_transformer.comparison.markdown import escape, plural, table
from vanilla_transformer.hub.exported_folders import EXAMPLE

TEMPLATE, LICENSE = "model_card.md", "LICENSE"
NOT_RECORDED = "Not recorded."


@dataclass(frozen=True)
class Score:
    """One figure of an evaluation; `signature` is sacreBLEU's, for its metrics."""

    dataset: str
    metric: str
    value: float
    signature: str | None = None


@dataclass(frozen=True)
class ComparedModel:
    """One row of a comparison: the same training data, vocabulary, batches, decoding and metrics for all models."""

    name: str  # such as "RNN"
    results: Mapping[str, Any]  # its run's results.json
    scores: Sequence[Score]


@dataclass(frozen=True, kw_only=True)
class ModelCardFacts:
    """All facts of a card, as plain text: the card shows markup as it is. None or empty: unknown."""

    model_name: str  # id on the Hub, or a name
    parameters: int  # tied ones count once
    model_type: str = "vanilla_transformer"
    base_model: str | None = None  # that was fine-tuned: id on the Hub, or a name
    base_model_on_hub: bool = False  # whether it is an id
    imported_from: str | None = None  # toolkit and file of a model that was trained elsewhere
    has_target_tokenizer: bool = False  # beside that of the source
    example_input: str = EXAMPLE  # for the code in the card, in the form of the training data
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
    comparison: Sequence[ComparedModel] = ()  # this model first
    difference: str = ""  # a sentence on the difference of the compared scores, and its significance


def write_model_card(folder: str | Path, *, facts: ModelCardFacts) -> Path:
    """Write `folder/README.md` and `folder/LICENSE`, replacing existing ones; returns the path of the card."""
    data = _card_data(facts)
    card = ModelCard.from_template(data, template_str=_find(TEMPLATE).read_text("utf-8"), **card_text(facts))
    card.data = data  # the template has metadata of its own
    path = Path(folder, "README.md")
    path.write_text(str(card).rstrip() + "\n", encoding="utf-8", newline="\n")
    write_license(path.parent)
    return path


def write_license(folder: Path) -> Path:
    """Write `folder/LICENSE`, the licence of the code in a model folder; it does not cover the weights."""
    return shutil.copyfile(_find(LICENSE), folder / LICENSE)


def _find(name: str) -> Path:
    """Beside this module in an installed package, at the top of the repository in a checkout."""
    places = [Path(__file__).with_name(name), Path(__file__).parents[2] / name]
    for place in places:
        if place.is_file():
            return place
    raise FileNotFoundError(f"{name}, which goes with every model, is in neither {places[0]} nor {places[1]}")


def _card_data(facts: ModelCardFacts) -> ModelCardData:
    task = "translation" if len(facts.languages) > 1 else None
    return ModelCardData(
        language=list(facts.languages) or None,
        license=facts.weights_license,
        base_model=facts.base_model if facts.base_model_on_hub else None,
        library_name="transformers",
        pipeline_tag=task,
        tags=list(dict.fromkeys(["vanilla_transformer", facts.model_type])),  # the package, then the model
        datasets=list(facts.datasets) or None,
        model_name=facts.model_name if facts.scores else None,  # the heading of the scores in the model index
        eval_results=[_eval_result(score, task or "text2text-generation") for score in facts.scores] or None,
    )


def _eval_result(score: Score, task: str) -> EvalResult:
    dataset = " ".join(score.dataset.split())
    return EvalResult(
        task_type=task,
        dataset_type=dataset,  # the Hub groups results by it, under the first one's name
        dataset_name=dataset,
        metric_type=re.sub(r"\W+", "_", score.metric.lower()).strip("_"),
        metric_name=" ".join(score.metric.split()),
        metric_value=score.value,
        metric_args={"signature": score.signature} if score.signature else None,
    )


def card_text(facts: ModelCardFacts) -> dict[str, str]:
    """The variables of the template, escaped; empty where the template has another text for what is unknown."""
    base_model = facts.base_model or ""
    return {
        "name": escape(facts.model_name),
        "name_in_python": json.dumps(facts.model_name, ensure_ascii=False),
        "name_in_shell": shlex.quote(" ".join(facts.model_name.split())),
        "example_in_python": json.dumps(facts.example_input, ensure_ascii=False),
        "languages": escape(" → ".join(facts.languages)),
        "model_type": facts.model_type,
        "base_model": link(base_model) if facts.base_model_on_hub else escape(base_model),
        "has_target_tokenizer": "yes" if facts.has_target_tokenizer else "",
        "imported_from": escape(facts.imported_from or ""),
        "training_data": _training_data(facts),
        "training": _training(facts),
        "flops": _flops(facts),
        "hyperparameters": table(["", ""], list(_rows(facts.recipe))) if facts.recipe else NOT_RECORDED,
        "results": _results(facts),
        "signatures": "\n".join(
            f"- {escape(score.metric)} on {escape(score.dataset)}: `{score.signature}`"
            for score in facts.scores
            if score.signature
        ),
        "comparison": _comparison(facts) if facts.comparison else "",
        "weights_license": escape(facts.weights_license or "no licence stated"),
    }


def link(name: str, folder: str = "") -> str:
    """A repository on the Hub, in Markdown."""
    return f"[{escape(name)}](https://huggingface.co/{folder}{name})"


def _training_data(facts: ModelCardFacts) -> str:
    known = {
        "Data": escape(facts.data_description or ""),
        "On the Hub": ", ".join(link(name, "datasets/") for name in facts.datasets),
        "Licence of the data": escape(facts.data_license or ""),
        "Pairs": "" if facts.pairs is None else f"{facts.pairs:,}",
    }
    if not any(known.values()):
        return NOT_RECORDED
    known["Licence of the data"] = known["Licence of the data"] or "not stated"
    return "\n".join(f"- {name}: {text}" for name, text in known.items() if text)


def _training(facts: ModelCardFacts) -> str:
    """A table, without rows for unknown facts."""
    versions = [("torch", facts.torch_version), ("transformers", facts.transformers_version)]
    known = {
        "parameters": f"{facts.parameters:,}",
        "updates": "" if facts.updates is None else f"{facts.updates:,}",
        "wall time of the updates": "" if facts.training_seconds is None else _duration(facts.training_seconds),
        "hardware": escape(facts.hardware or ""),
        "training FLOPs": _flops(facts),
        "software": escape(", ".join(f"{name} {version}" for name, version in versions if version is not None)),
    }
    return table(["", ""], [[name, value] for name, value in known.items() if value])


def _flops(facts: ModelCardFacts) -> str:
    if facts.training_seconds is None or facts.devices is None or facts.sustained_flops is None:
        return ""
    total = facts.training_seconds * facts.devices * facts.sustained_flops
    return (
        f"{_power(total)} = {facts.training_seconds:,.0f} seconds × {plural(facts.devices, 'device')} × "
        f"{_power(facts.sustained_flops)} FLOP/s"
    )


def _results(facts: ModelCardFacts) -> str:
    if not facts.scores:
        return NOT_RECORDED
    rows = [[escape(score.dataset), escape(score.metric), f"{score.value:#.4g}"] for score in facts.scores]
    return table(["data", "metric", "value"], rows)


def _comparison(facts: ModelCardFacts) -> str:
    scores = facts.comparison[0].scores
    rows = [
        [
            f"{escape(model.name)}{' (this model)' if index == 0 else ''}",
            f"{model.results['parameters']:,}",
            f"{model.results['updates']:,}",
            _duration(model.results["training_seconds"]),
            *(f"{score.value:#.4g}" for score in model.scores),
        ]
        for index, model in enumerate(facts.comparison)
    ]
    datasets = ", ".join(dict.fromkeys(escape(score.dataset) for score in scores))
    header = ["model", "parameters", "updates", "wall time", *(escape(score.metric) for score in scores)]
    return (
        f"Trained on the same data, vocabulary and batches, decoded alike, and scored on {datasets}:\n\n"
        f"{table(header, rows)}\n\n{escape(facts.difference)}"
    )


def _rows(recipe: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested sections as dotted names."""
    for key, value in recipe.items():
        if isinstance(value, Mapping):
            yield from _rows(value, f"{prefix}{key}.")
        elif value is not None:
            yield escape(f"{prefix}{key}"), escape(value if isinstance(value, str) else json.dumps(value))


def _duration(seconds: float) -> str:
    return f"{seconds:,.0f} seconds ({timedelta(seconds=round(seconds))})"


def _power(value: float) -> str:
    """As the paper writes it: 3.3 · 10^18."""
    digits, exponent = f"{value:.1e}".split("e")
    return f"{digits} · 10^{int(exponent)}"
