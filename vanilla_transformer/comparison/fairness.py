# SPDX-License-Identifier: Apache-2.0
"""Checks that a comparison is fair: equal parameters, and runs that differ in their model and optimizer alone."""

from collections.abc import Mapping
from typing import Any

import torch
from transformers import AutoModelForSeq2SeqLM

from vanilla_transformer.configuration_rnn_seq2seq import RNNSeq2SeqConfig
from vanilla_transformer.training.configuration import RunConfig, check_model_section, model_config_of
from vanilla_transformer.training.device import bfloat16_is_faster

TRANSFORMER = "Transformer"  # the name of the model that all others are compared with

PARAMETER_TOLERANCE = 0.05  # of the smallest number of parameters
# The controlled variables: the material of learning, and how outputs are made. The precision is not among
# them: on a CPU each model has the faster one, and the report names it.
CONTROLLED_SECTIONS = ("data", "tokenizer", "generation")
CONTROLLED_TRAINING = (
    *("max_source_tokens", "max_target_tokens", "gradient_accumulation_steps", "tokens_per_update"),
    "seed",
    *("checkpoint_every", "keep_checkpoints", "average_checkpoints"),
)


def check_has_transformer(where: str, models: Mapping[str, Any]) -> None:
    """Raise ValueError if no model is named "Transformer"."""
    if TRANSFORMER not in models:
        raise ValueError(f"{where} must have one named {TRANSFORMER!r}; it has {', '.join(models) or 'none'}")


def check_models(where: str, sections: Mapping[str, Any]) -> None:
    """Raise ValueError if no model is named "Transformer", or if no model can be built from a section `model`."""
    check_has_transformer(where, sections)
    for name, section in sections.items():
        if not isinstance(section, dict):
            raise ValueError(f"{where}.{name}={section!r} must be a section of a model's fields")
        try:
            check_model_section(section)
        except ValueError as error:
            raise ValueError(f"{where}.{name}: {error}") from error


def count_parameters(model: dict[str, Any], **vocabulary: Any) -> int:
    """The parameters of a section `model`; tied ones count once, and no weights are allocated.

    Args:
        vocabulary: the fields of `vocabulary_fields`.
    """
    with torch.device("meta"):
        return AutoModelForSeq2SeqLM.from_config(model_config_of(model, **vocabulary)).num_parameters()


def check_parameters(where: str, parameters: Mapping[str, int]) -> None:
    """Raise ValueError if the models differ by more than 5% in parameters."""
    smallest, largest = (extreme(parameters, key=lambda name: parameters[name]) for extreme in (min, max))
    if parameters[largest] > (1 + PARAMETER_TOLERANCE) * parameters[smallest]:
        raise ValueError(
            f"{where}: {largest} has {parameters[largest]:,} parameters and {smallest} {parameters[smallest]:,}, more "
            f"than {PARAMETER_TOLERANCE:.0%} apart; change their widths until they are equal"
        )


def check_precision(where: str, precision: str, models: Mapping[str, Any], device: torch.device) -> None:
    """Raise ValueError if the models, sections `model`, would not compute in the same precision on this device."""
    recurrent = [name for name, model in models.items() if isinstance(model_config_of(model), RNNSeq2SeqConfig)]
    if precision != "no" and device.type != "cpu" and recurrent:
        raise ValueError(
            f"{where}={precision!r}: on {device.type} the recurrent layers of {', '.join(recurrent)} would compute in "
            f"float32 all the same, and the {TRANSFORMER} would not; only 'no' compares them in the same precision"
        )


def choose_precision(device: torch.device) -> str:
    """The `mixed_precision` that "auto" stands for: one choice for all models of a comparison.

    On a GPU it is "no", because recurrent layers would not compute in bfloat16.
    """
    return "bf16" if device.type == "cpu" and bfloat16_is_faster() else "no"


def check_runs(where: str, runs: Mapping[str, RunConfig]) -> None:
    """Raise ValueError at the first difference of the runs in data, vocabulary, batches or decoding."""
    (first, reference), *others = runs.items()
    expected = _controlled_settings(reference)
    for name, run in others:
        for key, value in _controlled_settings(run).items():
            if value != expected[key]:
                raise ValueError(
                    f"{where}: the runs of {first} and {name} differ in {key} ({expected[key]!r} and {value!r}); a "
                    "comparison needs the same data, vocabulary, batches and decoding"
                )


def _controlled_settings(run: RunConfig) -> dict[str, object]:
    values = run.to_dict()
    sections = {f"{name}.{key}": value for name in CONTROLLED_SECTIONS for key, value in values[name].items()}
    return sections | {f"training.{key}": values["training"][key] for key in CONTROLLED_TRAINING}
