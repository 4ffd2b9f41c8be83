# SPDX-License-Identifier: Apache-2.0
"""From the results.json of a training run to the facts of its model card."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vanilla_transformer.configuration_vanilla_transformer import VanillaTransformerConfig
from vanilla_transformer.hub.model_card import ModelCardFacts, Score, write_model_card
from vanilla_transformer.training.finished_model import MODEL, RESULTS

# Of the configuration, what another person would need for the same run; the rest are places on this machine.
RECIPE = {
    "training": (
        *("max_updates", "max_epochs", "max_minutes", "max_source_tokens", "max_target_tokens"),
        *("gradient_accumulation_steps", "seed", "checkpoint_every", "average_checkpoints"),
    ),
    "optimizer": ("beta1", "beta2", "eps", "warmup_steps", "learning_rate_scale", "max_grad_norm"),
    "generation": ("num_beams", "length_penalty", "max_tokens_beyond_source"),
}


def write_card_of_run(output_dir: Path, more_scores: Sequence[Score] = ()) -> Path:
    """Write the model card of a finished run into its model folder.

    Args:
        output_dir: of the run.
        more_scores: what the run itself could not compute.

    Returns:
        The path of the card.
    """
    results = json.loads((output_dir / RESULTS).read_text("utf-8"))
    return write_model_card(output_dir / MODEL, facts=facts_of_run(results, output_dir.resolve().name, more_scores))


def facts_of_run(results: Mapping[str, Any], name: str, more_scores: Sequence[Score] = ()) -> ModelCardFacts:
    """The facts for the card.

    Args:
        results: results.json.
        name: of the model.
        more_scores: shown before those of the run.
    """
    config = results["config"]
    data = config["data"]
    recipe = {section: {name: config[section][name] for name in names} for section, names in RECIPE.items()}
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
        pairs=results["pairs"],
        updates=results["updates"],
        training_seconds=results["training_seconds"],
        hardware=results["hardware"],
        torch_version=results["torch"],
        transformers_version=results["transformers"],
        scores=[*more_scores, *_scores(results)],
    )


def _scores(results: Mapping[str, Any]) -> list[Score]:
    corpus = results["config"]["data"]["name"] or "the corpus"
    scores = [
        Score(f"{corpus}: {score['data']}", score["metric"], score["value"], score["signature"])
        for score in results["scores"]
    ]
    validation = results["validation"]
    if validation is not None:
        where = f"{corpus}: validation, before averaging"
        scores.append(Score(where, "perplexity per token", validation["perplexity"]))
        if not results["scores"]:
            scores.append(Score(where, "BLEU", validation["bleu"], validation["bleu_signature"]))
    return scores
