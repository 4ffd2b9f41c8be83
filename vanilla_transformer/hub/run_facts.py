# SPDX-License-Identifier: Apache-2.0
"""From the results.json of a training run to the facts of its model card."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from vanilla_transformer.configuration_vanilla_transformer import VanillaTransformerConfig
from vanilla_transformer.hub.card_facts import ComparedModel, ModelCardFacts, Score
from vanilla_transformer.hub.model_card import write_model_card
from vanilla_transformer.training.checkpoint import checkpoint_name
from vanilla_transformer.training.export import MODEL, RESULTS

# The fields of a configuration that reproduce the run elsewhere; the others are paths, or change no result.
RECIPE = {
    "data": ("max_length",),
    "tokenizer": ("kind",),
    "training": (
        *("max_updates", "max_epochs", "max_minutes", "max_source_tokens", "max_target_tokens"),
        *("gradient_accumulation_steps", "seed", "checkpoint_every", "average_checkpoints"),
    ),
    "optimizer": ("beta1", "beta2", "eps", "warmup_steps", "learning_rate_scale", "max_grad_norm"),
    "generation": ("num_beams", "alpha", "max_tokens_beyond_source"),
}
FINE_TUNING_RECIPE = {
    "data": ("max_length",),
    "training": RECIPE["training"],
    "optimizer": (
        *("learning_rate", "schedule", "warmup_steps", "weight_decay", "beta1", "beta2", "eps", "max_grad_norm"),
    ),
    "lora": ("r", "alpha", "dropout", "target_modules"),
}


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
    config = results["config"]
    training = config["training"] | {"average_checkpoints": len(checkpoints)}
    results |= {"config": config | {"training": training}, "scores": [], "loss": None}
    facts_of = facts_of_finetuning if isinstance(config["model"], str) else facts_of_run  # fine-tuning names a folder
    return write_model_card(folder, facts=facts_of(results, name))


def write_card_of_finetuning(output_dir: Path) -> Path:
    """Write the model card of a finished fine-tuning, and the licence of the code, into its model folder."""
    return write_model_card(output_dir / MODEL, facts=facts_of_finetuning(_read(output_dir), output_dir.resolve().name))


def facts_of_finetuning(results: Mapping[str, Any], name: str) -> ModelCardFacts:
    """The facts of the model card of a fine-tuning, from its results.json."""
    config = results["config"]
    base, train = Path(config["model"]), config["data"]["train"]
    scores = _scores(results, "validation")
    if results["loss"] is not None:
        scores.append(Score("validation", "loss per token", results["loss"]))
    base_name = config["model"]
    if base.exists():  # a folder of this machine: its name, or its run's
        base = base.resolve()
        base_name = base.parent.name if base.name == MODEL else base.name
    files = [Path(train[side]).name for side in ("source", "target", "path") if train[side] is not None]
    return ModelCardFacts(
        model_name=name,
        model_type=results["model_type"],
        base_model=base_name,
        base_model_on_hub=not base.exists(),
        data_description=", ".join(files) or None,
        scores=scores,
        **_common_facts(results, FINE_TUNING_RECIPE),
    )


def compared_model(output_dir: Path, name: str, scores: Sequence[Score]) -> ComparedModel:
    """A finished run as one row of a comparison."""
    results = _read(output_dir)
    figures = {key: results[key] for key in ("parameters", "updates", "training_seconds")}
    return ComparedModel(name=name, scores=scores, **figures)


def facts_of_run(
    results: Mapping[str, Any], name: str, more_scores: Sequence[Score] = (), **more_facts: Any
) -> ModelCardFacts:
    """The facts of a run's model card.

    Args:
        results: results.json; former versions had no `devices`, `sustained_flops`, `weights_license` and `alpha`, and
            decoded by transformers' `length_penalty`.
        name: the model's.
        more_scores: come before those of the run.
        more_facts: fields of `ModelCardFacts` that are not in results.json.
    """
    config, data = results["config"], results["config"]["data"]
    common = _common_facts(results, RECIPE)
    if "alpha" not in config["generation"]:
        common["recipe"]["generation"]["length_penalty"] = config["generation"]["length_penalty"]
    common["recipe"] = {
        "model": config["model"] | {"vocab_size": results["vocab_size"]},
        **common["recipe"],
        "mixed_precision": results["mixed_precision"],
    }
    languages = [data["source_language"], data["target_language"]]
    return ModelCardFacts(
        model_name=name,
        model_type=config["model"].get("model_type", VanillaTransformerConfig.model_type),
        languages=languages if all(languages) else [],
        data_description=data["name"],
        data_license=data["license"],
        weights_license=data.get("weights_license"),
        training_seconds=results["training_seconds"],
        devices=results.get("devices"),
        sustained_flops=results.get("sustained_flops"),
        hardware=results["hardware"],
        scores=[*more_scores, *_scores_of_run(results)],
        **common,
        **more_facts,
    )


def _read(output_dir: Path) -> dict[str, Any]:
    return json.loads((output_dir / RESULTS).read_text("utf-8"))


def _common_facts(results: Mapping[str, Any], recipe: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """The facts of training and fine-tuning alike; `recipe` has the fields of each section that are published."""
    config = results["config"]
    return {
        "parameters": results["parameters"],
        "recipe": {
            section: {name: config[section][name] for name in names if name in config[section]}
            for section, names in recipe.items()
            if config[section] is not None
        },
        "datasets": _datasets(config["data"]["train"]["dataset"]),
        "pairs": results["pairs"],
        "updates": results["updates"],
        "torch_version": results["torch"],
        "transformers_version": results["transformers"],
    }


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
    return [Score(dataset, score["metric"], score["value"], score["signature"]) for score in results["scores"]]


def _scores_of_run(results: Mapping[str, Any]) -> list[Score]:
    """The scores on the test corpus, the perplexity, and the validation's BLEU where there is no test corpus."""
    config, validation = results["config"], results["validation"]
    corpus = config["data"]["name"] or "the corpus"
    scores = _scores(results, f"{corpus}: test")
    if validation is None:
        return scores
    where = f"{corpus}: validation, before averaging"
    scores.append(Score(where, "perplexity per token", validation["perplexity"]))
    if not results["scores"]:
        beams, alpha = config["training"]["validation_beams"], config["generation"].get("alpha")
        how = f"at most {config['training']['validation_sentences']:,} sentences, num_beams {beams}"
        if beams > 1 and alpha is not None:
            how += f", alpha {alpha}"
        where = f"{corpus}: validation ({how}), before averaging"
        scores.append(Score(where, "BLEU", validation["bleu"], validation["bleu_signature"]))
    return scores
