# SPDX-License-Identifier: Apache-2.0
"""From the results.json of a run to the facts of its model card."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from vanilla_transformer.hub.model_card import ModelCardFacts, Score, write_model_card
from vanilla_transformer.training.checkpoint import checkpoint_name
from vanilla_transformer.training.export import MODEL, RESULTS

# Fields of a configuration that reproduce the run elsewhere (`None`: all); the others are paths, or change no result.
RECIPE = {
    "data": ("max_length", "temperature"),
    "tokenizer": ("kind", "shared", "add_tokens"),
    "training": (
        *("max_updates", "max_epochs", "max_minutes", "max_source_tokens", "max_target_tokens"),
        *("gradient_accumulation_steps", "tokens_per_update", "seed", "checkpoint_every", "average_checkpoints"),
    ),
    "optimizer": None,
    "generation": ("num_beams", "alpha", "max_tokens_beyond_source"),
    "lora": None,
}
MIXED = ("weight", "tag", "target_tag")  # likewise, of each training corpus of a list


def write_card_of_run(output_dir: Path, more_scores: Sequence[Score] = (), **more_facts: Any) -> Path:
    """Write the model card of a finished run, and the licence of the code, into its model folder.

    Args:
        more_scores, more_facts: as for `facts_of_run`.
    """
    facts = facts_of_run(_read(output_dir), output_dir.resolve().name, more_scores, **more_facts)
    return write_model_card(output_dir / MODEL, facts=facts)


def write_card_of_average(folder: Path, *, run: Path, checkpoints: Sequence[Path], name: str) -> Path | None:
    """Write the model card of an average of a run's last checkpoints.

    It leaves out the run's scores on its test corpus: they belong to the average that the run itself made.

    Args:
        folder: gets the card.
        run: output_dir of the run.
        checkpoints: oldest first.
        name: the model's.

    Returns:
        The path of the card; `None` if the run has no results.json, or ended with another checkpoint.
    """
    if not (run / RESULTS).is_file():
        return None
    results = _read(run)
    if checkpoints[-1].name != checkpoint_name(results["updates"]):
        return None
    results["config"]["training"]["average_checkpoints"] = len(checkpoints)
    return write_model_card(folder, facts=facts_of_run(results | {"scores": [], "loss": None}, name))


def facts_of_run(
    results: Mapping[str, Any], name: str, more_scores: Sequence[Score] = (), **more_facts: Any
) -> ModelCardFacts:
    """The facts of the model card of a training or a fine-tuning.

    Args:
        results: results.json; former versions had no `devices`, `sustained_flops` and `weights_license`.
        name: the model's.
        more_scores: come before those of the run.
        more_facts: fields of `ModelCardFacts` that are not in results.json.
    """
    is_fine_tuning = isinstance(results["config"]["model"], str)  # the base model
    own = _facts_of_finetuning(results) if is_fine_tuning else _facts_of_training(results)
    return ModelCardFacts(
        model_name=name,
        torch_version=results["torch"],
        transformers_version=results["transformers"],
        datasets=[name for corpus in _training_corpora(results) for name in _datasets(corpus["dataset"])],
        scores=[*more_scores, *own.pop("scores")],
        has_target_tokenizer="decoder_vocab_size" in _vocabularies(results),
        **{key: results[key] for key in ("model_type", "parameters", "pairs", "updates")},
        **own,
        **more_facts,
    )


def _vocabularies(results: Mapping[str, Any]) -> dict[str, int]:
    """The sizes of the vocabulary, or of source's and target's."""
    sizes = {name: results.get(name) for name in ("vocab_size", "decoder_vocab_size")}
    return {name: size for name, size in sizes.items() if size is not None}


def _facts_of_training(results: Mapping[str, Any]) -> dict[str, Any]:
    config, data = results["config"], results["config"]["data"]
    languages = [data["source_language"], data["target_language"]]
    return {
        "recipe": {
            "model": config["model"] | _vocabularies(results),
            **_recipe(config),
            "mixed_precision": results["mixed_precision"],
        },
        "languages": languages if all(languages) else [],
        "data_description": data["name"],
        "data_license": data["license"],
        "weights_license": data.get("weights_license"),
        **{key: results.get(key) for key in ("training_seconds", "devices", "sustained_flops", "hardware")},
        "scores": _scores_of_training(results),
    }


def _facts_of_finetuning(results: Mapping[str, Any]) -> dict[str, Any]:
    config = results["config"]
    base = config["model"]
    files = [
        Path(corpus[side]).name
        for corpus in _training_corpora(results)
        for side in ("source", "target", "path")
        if corpus[side] is not None
    ]
    loss = [] if results["loss"] is None else [Score("validation", "loss per token", results["loss"])]
    return {
        "recipe": _recipe(config),
        "base_model": folder_name(base),
        "base_model_on_hub": not Path(base).exists(),
        "data_description": ", ".join(files) or None,
        "scores": [*_scores(results, "validation"), *loss],
    }


def folder_name(folder: str | Path) -> str:
    """The name of a model folder, or of its run, without the path on this machine; a Hub id as it is."""
    path = Path(folder)
    if not path.exists():
        return str(folder)
    path = path.resolve()
    return path.parent.name if path.name == MODEL else path.name


def _training_corpora(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    train = results["config"]["data"]["train"]
    return train if isinstance(train, list) else [train]


def _read(output_dir: Path) -> dict[str, Any]:
    return json.loads((output_dir / RESULTS).read_text("utf-8"))


def _recipe(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    sections = {section: config.get(section) or {} for section in RECIPE}
    recipe = {
        section: {name: values[name] for name in RECIPE[section] or values if name in values}
        for section, values in sections.items()
    }
    if isinstance(corpora := config["data"]["train"], list):
        recipe["data"]["train"] = {corpus["name"]: {key: corpus[key] for key in MIXED} for corpus in corpora}
    return recipe


def _datasets(name: str | None) -> list[str]:
    """The training corpus if it is on the Hub, and not a folder of this machine."""
    if name is None or Path(name).exists():
        return []
    try:
        validate_repo_id(name)
    except HFValidationError:  # a path
        return []
    return [name]


def _scores(results: Mapping[str, Any], dataset: str) -> list[Score]:
    """A list of corpora has its names in `data`."""
    return [
        Score(
            dataset if score["data"] in ("test", "validation") else f"{dataset} {score['data']}",
            *(score[key] for key in ("metric", "value", "signature")),
        )
        for score in results["scores"]
    ]


def _scores_of_training(results: Mapping[str, Any]) -> list[Score]:
    """The scores on the test corpus, the perplexity, and the validation's BLEU where there is no test corpus."""
    config, training, validation = results["config"], results["config"]["training"], results["validation"]
    corpus = config["data"]["name"] or "the corpus"
    scores = _scores(results, f"{corpus}: test")
    if validation is None:
        return scores
    stage = ", before averaging" if training["average_checkpoints"] else ""
    where = f"{corpus}: validation{stage}"
    scores.append(Score(where, "perplexity per token", validation["perplexity"]))
    for name, figures in (validation.get("corpora") or {}).items():
        there = f"{corpus}: validation {name}{stage}"
        scores.append(Score(there, "perplexity per token", figures["perplexity"]))
        scores.append(Score(there, "BLEU", figures["bleu"], validation["bleu_signature"]))
    if not results["scores"]:
        sentences = training["validation_sentences"]
        beams = training["validation_beams"] or config["generation"]["num_beams"]
        how = f"{'all' if sentences is None else f'at most {sentences:,}'} sentences, num_beams {beams}"
        if beams > 1:
            how += f", alpha {config['generation']['alpha']}"
        where = f"{corpus}: validation ({how}){stage}"
        scores.append(Score(where, "BLEU", validation["bleu"], validation["bleu_signature"]))
    return scores
