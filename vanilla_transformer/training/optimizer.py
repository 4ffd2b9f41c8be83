# SPDX-License-Identifier: Apache-2.0
"""Adam or Muon, for a new model by the paper's schedule; AdamW or Muon in fine-tuning, by those of transformers."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedModel, get_scheduler

from vanilla_transformer.data.batches import StreamingTokenBatches, TokenBatchSampler
from vanilla_transformer.training.configuration import OptimizerConfig, TrainingConfig
from vanilla_transformer.training.finetuning import FineTuningOptimizerConfig
from vanilla_transformer.training.muon import MuonWithAdam
from vanilla_transformer.training.schedule import decaying_schedule, learning_rate, paper_schedule
from vanilla_transformer.training.train_state import Progress


def build_optimizer(
    config: OptimizerConfig | FineTuningOptimizerConfig, model: PreTrainedModel, run_length: Callable[[int], float]
) -> tuple[torch.optim.Optimizer, LambdaLR]:
    """Adam or Muon with the paper's schedule (section 5.3) or a decay from its peak; fine-tuning with transformers'.

    Args:
        run_length: as for `decaying_schedule`.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    options: Any = {"betas": (config.beta1, config.beta2), "eps": config.eps, "fused": True}
    schedule, warmup = config.schedule, config.warmup_steps
    if isinstance(config, OptimizerConfig):
        d_model, scale = model.config.hidden_size, config.learning_rate_scale
        is_papers = schedule == "inverse_sqrt"
        rate = 1.0 if is_papers else learning_rate(warmup, d_model, warmup, scale)  # equation 3 gives the rate itself
        if config.name == "muon":
            optimizer = MuonWithAdam(model, rate, **options)
        else:
            optimizer = torch.optim.Adam(parameters, rate, **options)
        if is_papers:
            return optimizer, paper_schedule(optimizer, d_model, warmup, scale)
        return optimizer, decaying_schedule(optimizer, schedule, warmup, run_length, first_step=1)
    if config.name == "muon":
        optimizer = MuonWithAdam(model, config.learning_rate, **options)
    else:
        optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=config.weight_decay, **options)
    if schedule in ("linear", "cosine"):  # transformers' end at a number of updates, not by the clock
        return optimizer, decaying_schedule(optimizer, schedule, warmup, run_length, first_step=0)
    of_transformers = get_scheduler(schedule, optimizer, warmup)
    assert isinstance(of_transformers, LambdaLR)
    return optimizer, of_transformers


class RunLength:
    """The number of updates of a whole run, and in words where it ends."""

    def __init__(
        self, training: TrainingConfig, sampler: TokenBatchSampler | StreamingTokenBatches, progress: Progress
    ):
        self.training = training
        self.progress = progress
        self.updates_per_epoch = self.pairs = None  # of a stream, nobody knows them
        if isinstance(sampler, TokenBatchSampler):  # counted once: another epoch may have a batch more
            self.pairs = sampler.pairs
            self.updates_per_epoch = math.ceil(len(sampler) / training.micro_batches(sampler.num_processes))

    def planned(self) -> int | None:
        """The updates at which `max_updates` or `max_epochs` ends the run; `None` if nobody can know."""
        training, progress = self.training, self.progress
        ends = [] if training.max_updates is None else [training.max_updates]
        if training.max_epochs is not None and self.updates_per_epoch is not None:
            begun = progress.begun_epoch + progress.begun_pairs / (self.pairs or 1)
            ends.append(progress.begun_updates + round((training.max_epochs - begun) * self.updates_per_epoch))
        return min(ends, default=None)

    def expected(self, updates: int) -> float:
        """The planned number, or fewer if `max_minutes` end the run before, at the mean speed of its first `updates`.

        The same in every process; infinite if nobody can know.
        """
        planned, minutes = self.planned(), self.training.max_minutes
        length = math.inf if planned is None else planned
        if minutes is None:
            return length
        seconds = max(self.progress.agreed_seconds, 1e-3)  # 0 until the first update is counted
        return min(length, max(updates, 1) * 60 * minutes / seconds)

    def __str__(self) -> str:
        planned, minutes = self.planned(), self.training.max_minutes
        ends = [] if planned is None else [f"{planned:,} updates"]
        return " or ".join(ends if minutes is None else [*ends, f"{minutes:g} minutes"])
