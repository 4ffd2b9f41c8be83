# SPDX-License-Identifier: Apache-2.0
"""A run's progress for a person: a bar, a line at each validation, and the same figures for trackers; a profile."""

import resource
import sys
from contextlib import nullcontext
from functools import cache

import torch
from accelerate.utils import tqdm

from vanilla_transformer.training import export
from vanilla_transformer.training.setup import Run
from vanilla_transformer.training.validation import Validation, perplexity


@cache
def measured_once(device: torch.device, mixed_precision: str) -> float:
    """`sustained_flops`, for all runs of this process."""
    return export.sustained_flops(device, mixed_precision)


class ProgressReport:
    """The progress bar, and the same figures for the run's trackers every `log_every` updates."""

    def __init__(self, run: Run):
        self.run = run
        self.training = run.config.training
        self.accelerator = run.state.accelerator
        self.progress = run.state.progress
        self.parameters = run.state.bare_model().num_parameters()
        self.sustained_flops = measured_once(self.accelerator.device, self.accelerator.mixed_precision)
        self.bar = tqdm(
            total=run.length.planned(), initial=self.progress.updates, unit=" updates", mininterval=1, smoothing=0.05
        )
        self.last_speed = ""  # before `log_every` updates nothing is known
        self._start_window()

    def __enter__(self) -> "ProgressReport":
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()

    def _start_window(self) -> None:
        self.loss, self.nll, self.count, self.tokens, self.own_tokens = 0.0, 0.0, 0, 0, 0
        self.seconds_before, self.waited_before = self.progress.seconds, self.run.batches.seconds_waited

    def add(self, loss: float, nll: float, tokens: int, own_tokens: int) -> None:
        """Count one update: loss and nll, means per target token; target tokens, and this process's of both sides."""
        self.loss += loss
        self.nll += nll
        self.count += 1
        self.tokens += tokens
        self.own_tokens += own_tokens
        self.bar.update()
        if self.progress.updates % self.training.log_every == 0:
            self._log()

    def _log(self) -> None:
        loss = self.loss / self.count
        figures = {
            "loss": loss,
            "perplexity": perplexity(self.nll / self.count),
            "learning_rate": self.run.state.schedule.get_last_lr()[0],
            "epoch": self.run.epochs(),
            **self._speed(),
        }
        self._track("train", figures)
        self.last_speed = speed_in_words(figures)
        self.bar.set_postfix_str(
            f"loss {loss:.3f}, ppl {figures['perplexity']:.2f}, lr {figures['learning_rate']:.2e}, "
            f"{self.last_speed}, epoch {figures['epoch']:.1f}{self._time_left()}{self._mishaps()}"
        )
        self._start_window()

    def _speed(self) -> dict[str, float]:
        """The model's operations are 6 for each parameter and token of a side (Kaplan et al. 2020)."""
        seconds = self.progress.seconds - self.seconds_before
        flops = 6 * self.parameters * self.own_tokens / 2
        return {
            "target_tokens_per_second": self.tokens / seconds,
            "target_tokens_per_second_per_device": self.tokens / seconds / self.accelerator.num_processes,
            "model_flops_utilization": flops / seconds / self.sustained_flops,
            "peak_memory_gib": peak_memory(self.accelerator.device) / 2**30,
            "data_waiting_share": (self.run.batches.seconds_waited - self.waited_before) / seconds,
        }

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
        names = ("loss", "perplexity", "bleu", "sentence_error_rate")
        self._track("validation", {name: getattr(result, name) for name in names})
        for corpus, figures in result.corpora.items():
            self._track(f"validation/{corpus}", {name: figures[name] for name in names})
        errors = ""
        if self.training.best_by == "sentence_error_rate":
            errors = f", {result.sentence_error_rate:.1%} of the sentences wrong"
        best = " (best so far)" if result.is_best else ""
        lines = [
            f"update {self.progress.updates}, {self.progress.seconds / 60:.1f} minutes of training: validation loss "
            f"{result.loss:.3f}, perplexity {result.perplexity:.2f}, BLEU {result.bleu:.2f}{errors}{best}",
            f"    {self.last_speed}",
        ]
        lines += [
            f"    {corpus}: loss {values['loss']:.3f}, perplexity {values['perplexity']:.2f}, BLEU {values['bleu']:.2f}"
            for corpus, values in result.corpora.items()
        ]
        for source, translation, reference in result.examples:
            lines += [f"    {truncate(source)}", f"      → {truncate(translation)}", f"      = {truncate(reference)}"]
        self.write("\n".join(lines))

    def write(self, text: str) -> None:
        """Lines above the bar, from the main process only."""
        if self.accelerator.is_main_process:
            self.bar.write(text)


def speed_in_words(figures: dict[str, float]) -> str:
    """The figures of an update's speed in one line."""
    return (
        f"{figures['target_tokens_per_second_per_device']:,.0f} target tokens/s a device, "
        f"MFU {figures['model_flops_utilization']:.0%}, peak memory {figures['peak_memory_gib']:.2f} GiB, "
        f"{figures['data_waiting_share']:.1%} waiting for data"
    )


def peak_memory(device: torch.device) -> int:
    """The most bytes that tensors have taken on a GPU; on a CPU, or an MPS device that shares its memory, the most that
    the process has had resident.
    """
    if device.type in ("cuda", "xpu"):
        return torch.accelerator.max_memory_allocated(device)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024  # KiB on Linux


def profiler(run: Run) -> "torch.profiler.profile | nullcontext[None]":
    """torch's profiler over `profile_updates` updates after a warm-up; writes Chrome traces to `output_dir/profile`."""
    if run.config.training.profile_updates is None:
        return nullcontext()
    folder = run.output_dir / "profile"
    folder.mkdir(exist_ok=True)
    trace = folder / f"process-{run.state.accelerator.process_index}.json"
    schedule = torch.profiler.schedule(wait=5, warmup=2, active=run.config.training.profile_updates, repeat=1)
    return torch.profiler.profile(
        schedule=schedule, on_trace_ready=lambda profile: profile.export_chrome_trace(str(trace))
    )


def truncate(text: str, max_length: int = 100) -> str:
    """The first characters of a text: a model that has learnt little repeats itself without end."""
    return text if len(text) <= max_length else f"{text[:max_length]} …"
