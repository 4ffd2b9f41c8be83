# SPDX-License-Identifier: Apache-2.0
"""Adam and its learning rate: section 5.3 of the paper for a new model, a schedule of transformers for fine-tuning."""

import math
from typing import Any

from torch.optim import Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedModel, get_scheduler

from vanilla_transformer.data.batches import StreamingTokenBatches, TokenBatchSampler
from vanilla_transformer.training.configuration import OptimizerConfig, TrainingConfig
from vanilla_transformer.training.finetuning import FineTuningOptimizerConfig


def learning_rate(step: int, d_model: int, warmup_steps: int, scale: float = 1.0) -> float:
    """Equation 3: scale * d_model^-0.5 * min(step^-0.5, step * warmup_steps^-1.5); `step` counts updates from 1."""
    return scale * d_model**-0.5 * min(step**-0.5, step * warmup_steps**-1.5)


def paper_schedule(optimizer: Optimizer, d_model: int, warmup_steps: int, scale: float = 1.0) -> LambdaLR:
    """Equation 3 as torch's scheduler, stepped once per update.

    transformers' `inverse_sqrt` starts at rate 0, so its first update changes nothing; equation 3 starts at step 1.
    The optimizer must be made with lr=1.0: the schedule gives the rate itself.
    """
    return LambdaLR(optimizer, lambda done: learning_rate(done + 1, d_model, warmup_steps, scale))


def build_optimizer(
    config: OptimizerConfig | FineTuningOptimizerConfig, model: PreTrainedModel, planned_updates: int | None
) -> tuple[Optimizer, LambdaLR]:
    """Adam with the paper's schedule (section 5.3), or AdamW with a schedule of transformers."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    options: Any = {"betas": (config.beta1, config.beta2), "eps": config.eps, "fused": True}
    if isinstance(config, OptimizerConfig):
        optimizer = Adam(parameters, lr=1.0, **options)  # the schedule gives the rate itself
        d_model: int = model.config.hidden_size
        return optimizer, paper_schedule(optimizer, d_model, config.warmup_steps, config.learning_rate_scale)
    optimizer = AdamW(parameters, lr=config.learning_rate, weight_decay=config.weight_decay, **options)
    schedule = get_scheduler(config.schedule, optimizer, config.warmup_steps, planned_updates)
    assert isinstance(schedule, LambdaLR)
    return optimizer, schedule


def planned_updates(training: TrainingConfig, sampler: TokenBatchSampler | StreamingTokenBatches) -> int | None:
    """The updates at which `max_updates` or `max_epochs` ends the run; `None` if nobody can know."""
    ends = [] if training.max_updates is None else [training.max_updates]
    if training.max_epochs is not None and isinstance(sampler, TokenBatchSampler):
        ends.append(training.max_epochs * math.ceil(len(sampler) / training.gradient_accumulation_steps))
    return min(ends, default=None)
