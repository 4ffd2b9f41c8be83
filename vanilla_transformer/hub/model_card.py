# SPDX-License-Identifier: Apache-2.0
"""The model card: model_card.md at the top of the repository, filled with the facts of a run."""

import re
import shutil
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from vanilla_transformer.hub.card_facts import ModelCardFacts, Score
from vanilla_transformer.hub.card_text import card_text

TEMPLATE, LICENSE = "model_card.md", "LICENSE"


def write_model_card(folder: str | Path, *, facts: ModelCardFacts) -> Path:
    """Write `folder/README.md` and `folder/LICENSE`, replacing existing ones; returns the path of the card.

    Raises:
        FileNotFoundError: no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"model folder {folder} does not exist")
    data = _card_data(facts)
    card = ModelCard.from_template(data, template_str=_find(TEMPLATE).read_text("utf-8"), **card_text(facts))
    card.data = data  # the template has metadata of its own
    path = folder / "README.md"
    path.write_text(str(card).rstrip() + "\n", encoding="utf-8", newline="\n")
    write_license(folder)
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
