# SPDX-License-Identifier: Apache-2.0
"""Adam, for a new model by the paper's schedule, for a fine-tuned one by those of transformers."""

import math
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedModel, get_scheduler

from vanilla_transformer.data.batches import StreamingTokenBatches, TokenBatchSampler
from vanilla_transformer.training.configuration import OptimizerConfig, TrainingConfig
from vanilla_transformer.training.finetuning import FineTuningOptimizerConfig
from vanilla_transformer.training.schedule import paper_schedule


def build_optimizer(
    config: OptimizerConfig | FineTuningOptimizerConfig, model: PreTrainedModel, planned_updates: int | None
) -> tuple[torch.optim.Optimizer, LambdaLR]:
    """Adam with the paper's schedule (section 5.3), or AdamW with a schedule of transformers."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    options: Any = {"betas": (config.beta1, config.beta2), "eps": config.eps, "fused": True}
    if isinstance(config, OptimizerConfig):
        optimizer = torch.optim.Adam(parameters, lr=1.0, **options)  # the schedule gives the rate itself
        d_model: int = model.config.hidden_size
        return optimizer, paper_schedule(optimizer, d_model, config.warmup_steps, config.learning_rate_scale)
    optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=config.weight_decay, **options)
    schedule = get_scheduler(config.schedule, optimizer, config.warmup_steps, planned_updates)
    assert isinstance(schedule, LambdaLR)
    return optimizer, schedule


def planned_updates(training: TrainingConfig, sampler: TokenBatchSampler | StreamingTokenBatches) -> int | None:
    """The updates at which `max_updates` or `max_epochs` ends the run; `None` if nobody can know."""
    ends = [] if training.max_updates is None else [training.max_updates]
    if training.max_epochs is not None and isinstance(sampler, TokenBatchSampler):
        ends.append(training.max_epochs * math.ceil(len(sampler) / training.micro_batches(sampler.num_processes)))
    return min(ends, default=None)
