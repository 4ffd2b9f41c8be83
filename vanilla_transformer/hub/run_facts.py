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
from vanilla_transformer.training.export import MODEL, RESULTS

# Of the configuration, what another person would need for the same run; the rest are places on this machine.
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
        output_dir: of the run.
        more_scores: what the run itself could not compute.
        more_facts: fields of `ModelCardFacts` that results.json does not tell.

    Returns:
        The path of the card.
    """
    facts = facts_of_run(_read(output_dir), output_dir.resolve().name, more_scores, **more_facts)
    return write_model_card(output_dir / MODEL, facts=facts)


def write_card_of_average(folder: Path, *, run: Path, checkpoints: Sequence[Path], name: str) -> Path | None:
    """Write the model card of a mean of a run's checkpoints, if the run ended with them.

    The run's scores on its test corpus are left out: they are of the mean that the run itself made.

    Args:
        folder: gets the card.
        run: output_dir of the run.
        checkpoints: oldest first.
        name: of the model.

    Returns:
        The path of the card; `None` if the run has no results.json, or one of other updates than the last checkpoint's.
    """
    if not (run / RESULTS).is_file():
        return None
    results = _read(run)
    if checkpoints[-1].name != f"update-{results['updates']:08d}":
        return None
    config = results["config"]
    training = config["training"] | {"average_checkpoints": len(checkpoints)}
    results |= {"config": config | {"training": training}, "scores": []}
    return write_model_card(folder, facts=facts_of_run(results, name))


def write_card_of_finetuning(output_dir: Path) -> Path:
    """Write the model card of a finished fine-tuning, and the licence of the code, into its model folder.

    Args:
        output_dir: of the run, with its results.json.

    Returns:
        The path of the card.
    """
    results = _read(output_dir)
    config = results["config"]
    base, train = config["model"], config["data"]["train"]
    scores = _scores_of(results, "validation")
    if results["loss"] is not None:
        scores.append(Score("validation", "loss per token", results["loss"]))
    facts = ModelCardFacts(
        model_name=output_dir.resolve().name,
        parameters=results["parameters"],
        model_type=results["model_type"],
        base_model=_name_of_folder(Path(base)) if Path(base).exists() else base,
        base_model_on_hub=not Path(base).exists(),
        recipe={
            section: {name: config[section][name] for name in names if name in config[section]}
            for section, names in FINE_TUNING_RECIPE.items()
            if config[section] is not None
        },
        data_description=_names_of_files(train),
        datasets=_datasets(train),
        pairs=results["pairs"],
        updates=results["updates"],
        torch_version=results["torch"],
        transformers_version=results["transformers"],
        scores=scores,
    )
    return write_model_card(output_dir / MODEL, facts=facts)


def _name_of_folder(folder: Path) -> str:
    """That of its run, if it is the model of one."""
    folder = folder.resolve()
    return folder.parent.name if folder.name == MODEL else folder.name


def _names_of_files(corpus: Mapping[str, Any]) -> str | None:
    """Without the places where they are on this machine."""
    names = [Path(corpus[side]).name for side in ("source", "target", "path") if corpus[side] is not None]
    return ", ".join(names) or None


def compared_model(output_dir: Path, name: str, scores: Sequence[Score]) -> ComparedModel:
    """A finished run as one row of a comparison."""
    results = _read(output_dir)
    figures = {key: results[key] for key in ("parameters", "updates", "training_seconds")}
    return ComparedModel(name=name, scores=scores, **figures)


def facts_of_run(
    results: Mapping[str, Any], name: str, more_scores: Sequence[Score] = (), **more_facts: Any
) -> ModelCardFacts:
    """The facts for the card.

    Args:
        results: results.json; an earlier version's has no `devices`, `sustained_flops`, `weights_license` and
            `alpha`: it decoded by transformers' `length_penalty`.
        name: of the model.
        more_scores: shown before those of the run.
        more_facts: fields of `ModelCardFacts` that results.json does not tell.
    """
    config = results["config"]
    data = config["data"]
    recipe = {
        section: {name: config[section][name] for name in names if name in config[section]}
        for section, names in RECIPE.items()
    }
    if "alpha" not in config["generation"]:
        recipe["generation"]["length_penalty"] = config["generation"]["length_penalty"]
    languages = [data["source_language"], data["target_language"]]
    return ModelCardFacts(
        model_name=name,
        parameters=results["parameters"],
        model_type=config["model"].get("model_type", VanillaTransformerConfig.model_type),
        recipe={
            "model": config["model"] | {"vocab_size": results["vocab_size"]},
            **recipe,
            "mixed_precision": results["mixed_precision"],
        },
        languages=languages if all(languages) else [],
        data_description=data["name"],
        data_license=data["license"],
        weights_license=data.get("weights_license"),
        datasets=_datasets(data["train"]),
        pairs=results["pairs"],
        updates=results["updates"],
        training_seconds=results["training_seconds"],
        devices=results.get("devices"),
        sustained_flops=results.get("sustained_flops"),
        hardware=results["hardware"],
        torch_version=results["torch"],
        transformers_version=results["transformers"],
        scores=[*more_scores, *_scores(results)],
        **more_facts,
    )


def _read(output_dir: Path) -> dict[str, Any]:
    return json.loads((output_dir / RESULTS).read_text("utf-8"))


def _datasets(train: Mapping[str, Any]) -> list[str]:
    """The training corpus if it is on the Hub; `dataset` may also be a folder of this machine."""
    name = train["dataset"]
    if name is None or Path(name).exists():
        return []
    try:
        validate_repo_id(name)
    except HFValidationError:  # a path
        return []
    return [name]


def _scores_of(results: Mapping[str, Any], where: str) -> list[Score]:
    return [Score(where, score["metric"], score["value"], score["signature"]) for score in results["scores"]]


def _scores(results: Mapping[str, Any]) -> list[Score]:
    corpus = results["config"]["data"]["name"] or "the corpus"
    scores = _scores_of(results, f"{corpus}: test")
    validation = results["validation"]
    if validation is not None:
        scores.append(
            Score(f"{corpus}: validation, before averaging", "perplexity per token", validation["perplexity"])
        )
        if not results["scores"]:
            training = results["config"]["training"]
            how = f"at most {training['validation_sentences']:,} sentences, num_beams {training['validation_beams']}"
            alpha = results["config"]["generation"].get("alpha")
            if training["validation_beams"] > 1 and alpha is not None:
                how += f", alpha {alpha}"
            where = f"{corpus}: validation ({how}), before averaging"
            scores.append(Score(where, "BLEU", validation["bleu"], validation["bleu_signature"]))
    return scores
