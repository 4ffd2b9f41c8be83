# SPDX-License-Identifier: Apache-2.0
"""Adam, for a new model by the paper's schedule, for a fine-tuned one by those of transformers."""

import math

import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedModel, get_scheduler

from vanilla_transformer.data.batches import StreamingTokenBatches, TokenBatchSampler
from vanilla_transformer.training.configuration import OptimizerConfig, TrainingConfig
from vanilla_transformer.training.finetuning_config import FineTuningOptimizerConfig
from vanilla_transformer.training.schedule import paper_schedule


def build_optimizer(config: OptimizerConfig, model: PreTrainedModel) -> tuple[torch.optim.Optimizer, LambdaLR]:
    """Adam and the paper's schedule (section 5.3)."""
    optimizer = torch.optim.Adam(
        model.parameters(),
        lr=1.0,  # the schedule gives the rate itself
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        fused=True,
    )
    d_model: int = model.config.hidden_size
    return optimizer, paper_schedule(optimizer, d_model, config.warmup_steps, config.learning_rate_scale)


def build_finetuning_optimizer(
    config: FineTuningOptimizerConfig, model: PreTrainedModel, planned_updates: int | None
) -> tuple[torch.optim.Optimizer, LambdaLR]:
    """AdamW for the weights that are trained, and a schedule of transformers, which starts with rate 0 if it warms up.

    Raises:
        ValueError: the schedule decays to the end of a run that only `training.max_minutes` ends.
    """
    if planned_updates is None and config.schedule in ("linear", "cosine"):
        raise ValueError(
            f"optimizer.schedule={config.schedule!r} ends with the run; set training.max_updates or training.max_epochs"
        )
    optimizer = torch.optim.AdamW(
        [parameter for parameter in model.parameters() if parameter.requires_grad],
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        weight_decay=config.weight_decay,
        fused=True,
    )
    schedule = get_scheduler(config.schedule, optimizer, config.warmup_steps, planned_updates)
    assert isinstance(schedule, LambdaLR)
    return optimizer, schedule


def planned_updates(training: TrainingConfig, order: TokenBatchSampler | StreamingTokenBatches) -> int | None:
    """The updates at which `max_updates` or `max_epochs` ends the run; `None` if nobody can know."""
    ends = [] if training.max_updates is None else [training.max_updates]
    if training.max_epochs is not None and isinstance(order, TokenBatchSampler):
        ends.append(training.max_epochs * math.ceil(len(order) / training.gradient_accumulation_steps))
    return min(ends, default=None)
