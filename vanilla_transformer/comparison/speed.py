# SPDX-License-Identifier: Apache-2.0
"""Section 4 of the paper, "Why Self-Attention": the speed of whole training steps by length of the sequences."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

import torch
from accelerate.utils import set_seed
from huggingface_hub.dataclasses import strict
from transformers import AutoModelForSeq2SeqLM, PreTrainedModel

from vanilla_transformer.comparison.fairness import check_models, check_parameters, check_precision
from vanilla_transformer.comparison.tasks import FIRST_SYMBOL
from vanilla_transformer.training.bounds import at_least
from vanilla_transformer.training.configuration import model_config_of


@strict
@dataclass(kw_only=True)
class SpeedConfig:
    """The section `speed`.

    Args:
        models: name → section `model` as in a run's configuration; equal in parameters to 5%.
        vocab_size: of all models.
        lengths: tokens of a source, and of its target.
        batch_tokens: target tokens in a batch, and as many source tokens; a batch has at least one sentence.
        repeats: measurements of each model at each length, interleaved with those of the other models.
        updates: in a measurement.
        precision: "bf16" computes under autocast.

    Raises:
        ValueError: no model named "Transformer"; a model section that cannot be used.
    """

    models: dict[str, Any]
    vocab_size: int = at_least(1)
    lengths: list[int] = at_least(1)  # noqa: RUF009 -- declares a field
    batch_tokens: int = at_least(1)
    repeats: int = at_least(1)
    updates: int = at_least(1)
    precision: Literal["no", "bf16"] = "no"

    def __post_init__(self):
        check_models("speed.models", self.models)


def measure_speed(
    settings: SpeedConfig, device: torch.device, on_progress: Callable[[int, int, str], None]
) -> dict[str, Any]:
    """Measure forward pass, backward pass and Adam's update on random tokens, the models interleaved (A B C A B C).

    Returns:
        The part `speed` of the results; `vanilla_transformer.comparison.report` documents it.

    Raises:
        ValueError: models whose parameters differ by more than 5%; a precision that not all would have on this device.
    """
    check_precision("speed.precision", settings.precision, settings.models, device)
    models = {}
    for name, section in settings.models.items():
        set_seed(1)
        config = model_config_of(section, vocab_size=settings.vocab_size)
        models[name] = AutoModelForSeq2SeqLM.from_config(config).to(device).train()
    parameters = {name: model.num_parameters() for name, model in models.items()}
    check_parameters("speed.models", parameters)
    # The learning rate does not affect the time.
    optimizers = {name: torch.optim.Adam(model.parameters(), lr=1e-4, fused=True) for name, model in models.items()}
    rows, is_bf16 = [], settings.precision == "bf16"
    for index, length in enumerate(settings.lengths):
        batch_size = max(1, settings.batch_tokens // length)
        ids = torch.randint(FIRST_SYMBOL, settings.vocab_size, (2, batch_size, length)).to(device)
        batch = {"input_ids": ids[0], "labels": ids[1]}
        tokens = batch_size * length * settings.updates
        speeds: dict[str, list[float]] = {name: [] for name in models}
        for name in models:
            # Warm-up: the first update of a shape allocates memory and selects kernels.
            time_updates(models[name], optimizers[name], batch, 1, is_bf16)
        for _ in range(settings.repeats):
            for name in models:
                seconds = time_updates(models[name], optimizers[name], batch, settings.updates, is_bf16)
                speeds[name].append(tokens / seconds)
        for name, repeats in speeds.items():
            rows.append({"model": name, "length": length, "batch_size": batch_size, "tokens_per_second": repeats})
        fastest = max(speeds, key=lambda name: median(speeds[name]))
        on_progress(index + 1, len(settings.lengths), f"length {length}: {fastest} is the fastest")
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "precision": "bfloat16 autocast" if is_bf16 else "float32 by TF32" if device.type == "cuda" else "float32",
        "parameters": parameters,
        "rows": rows,
    }


def time_updates(
    model: PreTrainedModel, optimizer: torch.optim.Optimizer, batch: dict[str, torch.Tensor], count: int, is_bf16: bool
) -> float:
    """Update the model on one batch; return the seconds until its device has finished."""
    start = time.perf_counter()
    for _ in range(count):
        with torch.autocast(model.device.type, torch.bfloat16, enabled=is_bf16):
            loss = model(**batch, skip_logits=True).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    if model.device.type != "cpu":  # an accelerator runs asynchronously
        torch.accelerator.synchronize(model.device)
    return time.perf_counter() - start
