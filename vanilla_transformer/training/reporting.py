# SPDX-License-Identifier: Apache-2.0
"""What a person sees while a run trains: one line of progress, and a few translations at each validation."""

import math
from types import TracebackType

import torch
from accelerate.utils import tqdm

from vanilla_transformer.training.preparation import Run
from vanilla_transformer.training.validation import Validation


class ProgressReport:
    """The progress bar, and the same figures to the run's trackers every `log_every` updates."""

    def __init__(self, run: Run):
        self.run = run
        self.settings = run.config.training
        self._start_window()

    def __enter__(self) -> "ProgressReport":
        progress = self.run.progress
        self.bar = tqdm(
            total=self.settings.max_updates, initial=progress.updates, unit=" updates", mininterval=1, smoothing=0.05
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.close()

    def _start_window(self) -> None:
        self.losses, self.likelihoods, self.count, self.tokens = 0.0, 0.0, 0, 0
        self.seconds_before = self.run.progress.seconds

    def add(self, loss: torch.Tensor, likelihood: torch.Tensor, tokens: int) -> None:
        """Count one update: this process's parts of its loss and likelihood, and its target tokens."""
        self.losses = self.losses + loss
        self.likelihoods = self.likelihoods + likelihood
        self.count += 1
        self.tokens += tokens
        self.bar.update()
        if self.run.progress.updates % self.settings.log_every == 0:
            self._log()

    def _log(self) -> None:
        run = self.run
        sums = torch.stack([torch.as_tensor(self.losses), torch.as_tensor(self.likelihoods)])
        loss, likelihood = (run.accelerator.reduce(sums, reduction="sum") / self.count).tolist()
        seconds = run.progress.seconds - self.seconds_before
        figures = {
            "loss": loss,
            "perplexity": math.exp(min(likelihood, 700)),
            "learning_rate": run.schedule.get_last_lr()[0],
            "target_tokens_per_second": self.tokens / seconds,
            "epoch": run.progress.epoch + run.progress.batches / len(run.batches.batch_sampler),
        }
        run.accelerator.log({f"train/{name}": value for name, value in figures.items()}, step=run.progress.updates)
        self.bar.set_postfix_str(
            f"loss {loss:.3f}, ppl {figures['perplexity']:.2f}, lr {figures['learning_rate']:.2e}, "
            f"{figures['target_tokens_per_second']:,.0f} target tokens/s, epoch {figures['epoch']:.1f}{self._time_left()}"
        )
        self._start_window()

    def _time_left(self) -> str:
        """For runs that end by the clock; the bar itself knows the rest of those that end by updates."""
        if self.settings.max_minutes is None:
            return ""
        left = max(0, round(self.settings.max_minutes * 60 - self.run.progress.seconds))
        return f", {left // 60}:{left % 60:02d} left"

    def show_validation(self, result: Validation) -> None:
        run = self.run
        run.accelerator.log(
            {
                "validation/loss": result.loss,
                "validation/perplexity": result.perplexity,
                "validation/bleu": result.bleu,
            },
            step=run.progress.updates,
        )
        best = " (best so far)" if result.is_best else ""
        self.write(
            f"update {run.progress.updates}, {run.progress.seconds / 60:.1f} minutes of training: validation loss "
            f"{result.loss:.3f}, perplexity {result.perplexity:.2f}, BLEU {result.bleu:.2f}{best}"
        )
        for source, translation, reference in result.examples:
            self.write(f"    {source}\n      → {translation}\n      = {reference}")

    def write(self, line: str) -> None:
        """One line above the bar, from the main process only."""
        if self.run.accelerator.is_main_process:
            self.bar.write(line)
