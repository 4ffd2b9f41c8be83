# SPDX-License-Identifier: Apache-2.0
"""A run's progress for a person: a bar, a line at each validation, and the same figures for trackers."""

import torch
from accelerate.utils import tqdm

from vanilla_transformer.distributed.processes import sum_over_processes
from vanilla_transformer.training.optimizer import planned_updates
from vanilla_transformer.training.setup import Run
from vanilla_transformer.training.validation import Validation, perplexity


class ProgressReport:
    """The progress bar, and the same figures for the run's trackers every `log_every` updates."""

    def __init__(self, run: Run):
        self.run = run
        self.training = run.config.training
        self.accelerator = run.state.accelerator
        self.progress = run.state.progress
        total = planned_updates(self.training, run.sampler)
        self.bar = tqdm(total=total, initial=self.progress.updates, unit=" updates", mininterval=1, smoothing=0.05)
        self._start_window()

    def __enter__(self) -> "ProgressReport":
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()

    def _start_window(self) -> None:
        self.losses, self.nlls, self.count, self.tokens = torch.zeros(()), torch.zeros(()), 0, 0
        self.seconds_before = self.progress.seconds

    def add(self, loss: torch.Tensor, nll: torch.Tensor, tokens: int) -> None:
        """Count one update: this process's parts of its loss and nll, and its target tokens."""
        self.losses = self.losses.to(loss.device) + loss
        self.nlls = self.nlls.to(loss.device) + nll
        self.count += 1
        self.tokens += tokens
        self.bar.update()
        if self.progress.updates % self.training.log_every == 0:
            self._log()

    def _log(self) -> None:
        sums = sum_over_processes(self.accelerator, torch.stack([self.losses, self.nlls]))
        loss, nll = (sums / self.count).tolist()
        figures = {
            "loss": loss,
            "perplexity": perplexity(nll),
            "learning_rate": self.run.state.schedule.get_last_lr()[0],
            "target_tokens_per_second": self.tokens / (self.progress.seconds - self.seconds_before),
            "epoch": self.run.epochs(),
        }
        self._track("train", figures)
        self.bar.set_postfix_str(
            f"loss {loss:.3f}, ppl {figures['perplexity']:.2f}, lr {figures['learning_rate']:.2e}, "
            f"{figures['target_tokens_per_second']:,.0f} target tokens/s, epoch {figures['epoch']:.1f}"
            f"{self._time_left()}{self._mishaps()}"
        )
        self._start_window()

    def _track(self, group: str, figures: dict[str, float]) -> None:
        values = {f"{group}/{name}": value for name, value in figures.items()}
        self.accelerator.log(values, step=self.progress.updates)

    def _time_left(self) -> str:
        """For runs that end by the clock; the bar itself shows it for the others."""
        if self.training.max_minutes is None:
            return ""
        left = max(0, round(self.training.max_minutes * 60 - self.progress.seconds))
        return f", {left // 60}:{left % 60:02d} left"

    def _mishaps(self) -> str:
        """Skipped updates and halved batches in all parts of the run, if there are any."""
        counts = {"updates skipped": self.progress.skipped_updates, "batches halved": self.progress.halved_batches}
        return "".join(f", {count} {name}" for name, count in counts.items() if count)

    def show_skipped(self, in_a_row: int, gradient_norm: float) -> None:
        """One line for a skipped update."""
        self.write(
            f"after update {self.progress.updates}: an update is skipped, its loss or gradient is not finite "
            f"(gradient norm {gradient_norm}); {in_a_row} in a row"
        )

    def show_validation(self, result: Validation) -> None:
        """Figures and a few translations above the bar, and the figures for the trackers."""
        self._track("validation", {"loss": result.loss, "perplexity": result.perplexity, "bleu": result.bleu})
        best = " (best so far)" if result.is_best else ""
        lines = [
            f"update {self.progress.updates}, {self.progress.seconds / 60:.1f} minutes of training: validation loss "
            f"{result.loss:.3f}, perplexity {result.perplexity:.2f}, BLEU {result.bleu:.2f}{best}"
        ]
        for source, translation, reference in result.examples:
            lines += [f"    {truncate(source)}", f"      → {truncate(translation)}", f"      = {truncate(reference)}"]
        self.write("\n".join(lines))

    def write(self, text: str) -> None:
        """Lines above the bar, from the main process only."""
        if self.accelerator.is_main_process:
            self.bar.write(text)


def truncate(text: str, max_length: int = 100) -> str:
    """The first characters of a text: a model that has learnt little repeats itself without end."""
    return text if len(text) <= max_length else f"{text[:max_length]} …"
