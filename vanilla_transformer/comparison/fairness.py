# SPDX-License-Identifier: Apache-2.0
"""What must be equal for a comparison to be fair, and the one clear line if it is not."""

from collections.abc import Mapping
from typing import Any

import torch
from transformers import AutoModelForSeq2SeqLM

from vanilla_transformer.training.configuration import RunConfig, model_config_of

TRANSFORMER = "Transformer"  # the name of the model that all others are compared with

TOLERANCE = 0.05  # of the number of parameters
# All that decides what a model is given to learn and how its answers are made.
EQUAL_SECTIONS = ("data", "tokenizer", "generation")
EQUAL_TRAINING = (
    *("max_source_tokens", "max_target_tokens", "gradient_accumulation_steps", "mixed_precision", "seed"),
    *("checkpoint_every", "keep_checkpoints", "average_checkpoints"),
)


def check_has_transformer(where: str, models: Mapping[str, Any]) -> None:
    """Raise ValueError if no model is named "Transformer"."""
    if TRANSFORMER not in models:
        raise ValueError(f"{where} must have one named {TRANSFORMER!r}, beside {', '.join(models)}")


def parameters_of(model: dict[str, Any], vocab_size: int) -> int:
    """The number of parameters of a section `model`, without memory for them; tied ones count once."""
    with torch.device("meta"):
        return AutoModelForSeq2SeqLM.from_config(model_config_of(model, vocab_size=vocab_size)).num_parameters()


def check_parameters(where: str, parameters: Mapping[str, int]) -> None:
    """Raise ValueError if the models differ by more than 5% in parameters."""
    smallest = min(parameters, key=lambda name: parameters[name])
    largest = max(parameters, key=lambda name: parameters[name])
    if parameters[largest] > (1 + TOLERANCE) * parameters[smallest]:
        raise ValueError(
            f"{where}: {largest} has {parameters[largest]:,} parameters and {smallest} {parameters[smallest]:,}, more "
            f"than {TOLERANCE:.0%} apart; change their widths until they are equal"
        )


def check_runs(where: str, runs: Mapping[str, RunConfig]) -> None:
    """Raise ValueError if the runs differ in data, vocabulary, batches or decoding; names the first difference."""
    (first, reference), *others = runs.items()
    expected = _what_must_be_equal(reference)
    for name, run in others:
        for key, value in _what_must_be_equal(run).items():
            if value != expected[key]:
                raise ValueError(
                    f"{where}: the runs of {first} and {name} differ in {key} ({expected[key]!r} and {value!r}); a "
                    "comparison needs the same data, vocabulary, batches and decoding"
                )


def _what_must_be_equal(run: RunConfig) -> dict[str, object]:
    values = run.to_dict()
    found = {f"{section}.{key}": value for section in EQUAL_SECTIONS for key, value in values[section].items()}
    return found | {f"training.{key}": values["training"][key] for key in EQUAL_TRAINING}
