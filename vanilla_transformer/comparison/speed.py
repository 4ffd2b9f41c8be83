# SPDX-License-Identifier: Apache-2.0
"""Section 4 of the paper, "Why Self-Attention": how fast whole training steps are, by length of the sequences."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

import torch
from accelerate.utils import set_seed
from huggingface_hub.dataclasses import strict
from transformers import AutoModelForSeq2SeqLM, PreTrainedModel

from vanilla_transformer.comparison.fairness import check_has_transformer, check_parameters
from vanilla_transformer.comparison.tasks import FIRST_SYMBOL
from vanilla_transformer.training.configuration import check_model_section, model_config_of


@strict
@dataclass(kw_only=True)
class SpeedConfig:
    """The section `speed`.

    Args:
        models: name → section `model` as in a run's configuration; equal in parameters to 5%.
        vocab_size: of all models.
        lengths: tokens of a source, and of its target.
        batch_tokens: target tokens in a batch, as many as in its source; at least one sentence whatever its length.
        repeats: measurements of each model at each length, in turns.
        updates: in a measurement.
        precision: "bf16" computes under autocast.

    Raises:
        ValueError: nothing to measure; a number below 1; a model section that cannot be used.
    """

    models: dict[str, Any]
    vocab_size: int
    lengths: list[int]
    batch_tokens: int
    repeats: int
    updates: int
    precision: Literal["no", "bf16"] = "no"

    def __post_init__(self):
        check_has_transformer("speed.models", self.models)
        if not self.lengths:
            raise ValueError("speed.lengths must name at least one length")
        for name in ("vocab_size", "batch_tokens", "repeats", "updates"):
            if getattr(self, name) < 1:
                raise ValueError(f"speed.{name}={getattr(self, name)} must be at least 1")
        if min(self.lengths) < 1:
            raise ValueError(f"speed.lengths={self.lengths} must all be at least 1")
        for name, section in self.models.items():
            if not isinstance(section, dict):
                raise ValueError(f"speed.models.{name}={section!r} must be a section of a model's fields")
            try:
                check_model_section(section)
            except ValueError as error:
                raise ValueError(f"speed.models.{name}: {error}") from error


def measure_speed(
    settings: SpeedConfig, device: torch.device, on_progress: Callable[[int, int, str], None]
) -> dict[str, Any]:
    """Forward pass, backward pass and Adam's update on random tokens, every model in turn (A B C A B C).

    Returns:
        `device`, `precision`, `parameters` by model, and `rows`: `model`, `length`, `batch_size` and
        `tokens_per_second`, target tokens per second of each repeat.

    Raises:
        ValueError: models whose numbers of parameters differ by more than 5%.
    """
    models = {}
    for name, section in settings.models.items():
        set_seed(1)
        config = model_config_of(section, vocab_size=settings.vocab_size)
        models[name] = AutoModelForSeq2SeqLM.from_config(config).to(device).train()
    parameters = {name: model.num_parameters() for name, model in models.items()}
    check_parameters("speed.models", parameters)
    steps = {name: _Step(model, settings) for name, model in models.items()}

    rows = []
    for index, length in enumerate(settings.lengths):
        batch_size = max(1, settings.batch_tokens // length)
        shape = (batch_size, length)
        batch = {side: torch.randint(FIRST_SYMBOL, settings.vocab_size, shape) for side in ("input_ids", "labels")}
        batch = {side: ids.to(device) for side, ids in batch.items()}
        speeds: dict[str, list[float]] = {name: [] for name in models}
        for step in steps.values():
            step(batch)  # the first step of a shape pays for kernels and memory
        for _ in range(settings.repeats):
            for name, step in steps.items():
                _wait_for(device)
                start = time.perf_counter()
                for _ in range(settings.updates):
                    step(batch)
                _wait_for(device)
                tokens = batch_size * length * settings.updates
                speeds[name].append(tokens / (time.perf_counter() - start))
        for name, repeats in speeds.items():
            rows.append({"model": name, "length": length, "batch_size": batch_size, "tokens_per_second": repeats})
        fastest = max(speeds, key=lambda name: median(speeds[name]))
        on_progress(index + 1, len(settings.lengths), f"length {length}: {fastest} is the fastest")
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "precision": "bfloat16 autocast" if settings.precision == "bf16" else "float32",
        "parameters": parameters,
        "rows": rows,
    }


class _Step:
    """One update of one model."""

    def __init__(self, model: PreTrainedModel, settings: SpeedConfig):
        self.model = model
        self.optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, fused=True)  # no rate changes the time
        self.is_bf16 = settings.precision == "bf16"

    def __call__(self, batch: dict[str, torch.Tensor]) -> None:
        with torch.autocast(self.model.device.type, torch.bfloat16, enabled=self.is_bf16):
            loss = self.model(**batch, skip_logits=True).loss
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def _wait_for(device: torch.device) -> None:
    """An accelerator computes on after its commands have been given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
