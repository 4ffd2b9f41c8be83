# SPDX-License-Identifier: Apache-2.0
"""What a person sees while a run trains: one line of progress, and a few translations at each validation."""

import math
from types import TracebackType

import torch
from accelerate.utils import tqdm

from vanilla_transformer.data.batches import TokenBatchSampler
from vanilla_transformer.training.preparation import Run
from vanilla_transformer.training.validation import Validation, perplexity


class ProgressReport:
    """The progress bar, and the same figures to the run's trackers every `log_every` updates."""

    def __init__(self, run: Run):
        self.run = run
        self.settings = run.config.training
        self._start_window()

    def __enter__(self) -> "ProgressReport":
        done = self.run.progress.updates
        self.bar = tqdm(total=self._updates_in_all(), initial=done, unit=" updates", mininterval=1, smoothing=0.05)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.close()

    def _updates_in_all(self) -> int | None:
        """Where the run ends by updates or by epochs; `None` if nobody can know."""
        limits = []
        if self.settings.max_updates is not None:
            limits.append(self.settings.max_updates)
        if self.settings.max_epochs is not None and isinstance(self.run.order, TokenBatchSampler):
            an_epoch = math.ceil(len(self.run.order) / self.settings.gradient_accumulation_steps)
            limits.append(self.settings.max_epochs * an_epoch)
        return min(limits, default=None)

    def _start_window(self) -> None:
        self.losses, self.likelihoods, self.count, self.tokens = torch.zeros(()), torch.zeros(()), 0, 0
        self.seconds_before = self.run.progress.seconds

    def add(self, loss: torch.Tensor, likelihood: torch.Tensor, tokens: int) -> None:
        """Count one update: this process's parts of its loss and likelihood, and its target tokens."""
        self.losses = self.losses.to(loss.device) + loss
        self.likelihoods = self.likelihoods.to(loss.device) + likelihood
        self.count += 1
        self.tokens += tokens
        self.bar.update()
        if self.run.progress.updates % self.settings.log_every == 0:
            self._log()

    def _log(self) -> None:
        run = self.run
        sums = run.sum_over_processes(torch.stack([self.losses, self.likelihoods]))
        loss, likelihood = (sums / self.count).tolist()
        figures = {
            "loss": loss,
            "perplexity": perplexity(likelihood),
            "learning_rate": run.schedule.get_last_lr()[0],
            "target_tokens_per_second": self.tokens / (run.progress.seconds - self.seconds_before),
            "epoch": run.epochs(),
        }
        run.accelerator.log({f"train/{name}": value for name, value in figures.items()}, step=run.progress.updates)
        self.bar.set_postfix_str(
            f"loss {loss:.3f}, ppl {figures['perplexity']:.2f}, lr {figures['learning_rate']:.2e}, "
            f"{figures['target_tokens_per_second']:,.0f} target tokens/s, epoch {figures['epoch']:.1f}"
            f"{self._time_left()}{self._mishaps()}"
        )
        self._start_window()

    def _time_left(self) -> str:
        """For runs that end by the clock; the bar itself knows the rest of the others."""
        if self.settings.max_minutes is None:
            return ""
        left = max(0, round(self.settings.max_minutes * 60 - self.run.progress.seconds))
        return f", {left // 60}:{left % 60:02d} left"

    def _mishaps(self) -> str:
        """What is not as it should be, in all parts of the run; nothing if there is none."""
        progress = self.run.progress
        counts = {"updates skipped": progress.skipped_updates, "batches halved": progress.halved_batches}
        return "".join(f", {count} {name}" for name, count in counts.items() if count)

    def show_skipped(self, in_a_row: int, gradient_norm: float) -> None:
        """One line for an update that was not made; the norm is the gradient's."""
        self.write(
            f"after update {self.run.progress.updates}: an update is skipped, its loss or gradient is not finite "
            f"(gradient norm {gradient_norm}); {in_a_row} in a row"
        )

    def show_validation(self, result: Validation) -> None:
        """Its figures and a few translations above the bar, the figures to the trackers too."""
        run = self.run
        figures = {"loss": result.loss, "perplexity": result.perplexity, "bleu": result.bleu}
        run.accelerator.log({f"validation/{name}": value for name, value in figures.items()}, step=run.progress.updates)
        best = " (best so far)" if result.is_best else ""
        lines = [
            f"update {run.progress.updates}, {run.progress.seconds / 60:.1f} minutes of training: validation loss "
            f"{result.loss:.3f}, perplexity {result.perplexity:.2f}, BLEU {result.bleu:.2f}{best}"
        ]
        for source, translation, reference in result.examples:
            lines += [f"    {_cut(source)}", f"      → {_cut(translation)}", f"      = {_cut(reference)}"]
        self.write("\n".join(lines))

    def write(self, text: str) -> None:
        """Lines above the bar, from the main process only."""
        if self.run.accelerator.is_main_process:
            self.bar.write(text)


def _cut(text: str, longest: int = 100) -> str:
    """A model that has learnt little repeats itself without end."""
    return text if len(text) <= longest else f"{text[:longest]} …"
