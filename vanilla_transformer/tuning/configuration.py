# SPDX-License-Identifier: Apache-2.0
"""One sweep as YAML: the runs that it tunes, the values that it tries, and its budget."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from huggingface_hub.dataclasses import strict

from vanilla_transformer.comparison.markdown import listing, plural
from vanilla_transformer.console.shipped_configs import find_config
from vanilla_transformer.training.bounds import at_least, positive
from vanilla_transformer.training.yaml_sections import Word, build_section, read_yaml


@strict
@dataclass(kw_only=True)
class SweepConfig:
    """One sweep.

    Args:
        output_dir: its folder; the same command resumes in it, also with more `trials`.
        runs: name → file of a run's configuration, relative to the sweep's, or a shipped one. Several runs differ in
            model and optimizer alone, and get the same number of trials with the same budgets.
        metric: the measure of the settings, on `data.validation`, after the last update: "word error rate" (% of
            the sources whose output is none of their targets), "BLEU" (13a, cased), or "perplexity" (unsmoothed, per
            token). It is the finished model's, averaged and decoded as the run's configuration says.
        minutes, updates: the budget of one trial in the last rung; exactly one is given.
        trials: settings that are tried for each run, besides its own.
        rungs: the rounds of successive halving; the last has the whole budget.
        reduction_factor: each rung has so many times the budget of the rung before, and so many times fewer trials.
        space: sections of keys as in a run's configuration; for each key a list of values, or `{low: …, high: …}`, with
            `log: true` for a logarithmic scale; `None`: the key is not tried. The run's own value must be among them.
            Any other name is a choice among named alternatives, each with its changes in sections, and `{}` for the
            run's own: `average: {last 5: {}, none: {training: {average_checkpoints: 0}}}`.
        run_space: name of a run → keys of this run alone.
        first: changes to the run's own settings that are tried first, such as `{optimizer: {warmup_steps: 100}}` or
            `{average: none}`; a run whose space lacks one of them tries other settings instead.
        scaled: key → power: where a trial has a share of the budget, the key's value is multiplied by share^power.
        seed: the search's; the trials have `training.seed`.
        data, training: values for these sections of every run.
    """

    output_dir: str
    runs: dict[str, str]
    metric: Literal["word error rate", "BLEU", "perplexity"]
    minutes: float | None = positive(default=None)
    updates: int | None = at_least(1, default=None)
    trials: int = at_least(1)
    rungs: int = at_least(1, default=3)
    reduction_factor: int = at_least(2, default=3)
    space: dict[str, Word | Any]
    run_space: dict[str, dict[str, Word | Any]] = field(default_factory=dict)
    first: list[dict[str, Word | Any]] = field(default_factory=list)
    scaled: dict[str, float] = field(default_factory=dict)
    seed: int = at_least(0, default=1)
    data: dict[str, Word | Any] = field(default_factory=dict)
    training: dict[str, Word | Any] = field(default_factory=dict)

    def __post_init__(self):
        if (self.minutes is None) == (self.updates is None):
            raise ValueError(
                f"minutes={self.minutes} and updates={self.updates}: give one of them, as the budget of one trial in "
                "the last rung"
            )
        if not self.runs:
            raise ValueError("runs={} must name at least one")
        least = self.reduction_factor ** (self.rungs - 1)
        if self.trials < least:
            raise ValueError(
                f"trials={self.trials} must be at least {least}, so that rungs={self.rungs} with reduction_factor="
                f"{self.reduction_factor} leave one for the last"
            )
        if len(self.first) > self.trials:
            raise ValueError(f"trials={self.trials} must be at least {len(self.first)}, the number of those in first")
        if self.budgets()[0] == 0:
            raise ValueError(f"updates={self.updates} must be at least {least}, or the first rung has no update")

    def shares(self) -> list[float]:
        """Each rung's share of the budget."""
        return [self.reduction_factor ** (rung + 1.0 - self.rungs) for rung in range(self.rungs)]

    @property
    def budget_unit(self) -> str:
        return "minutes" if self.updates is None else "updates"

    def budgets(self) -> list[float]:
        """Minutes or updates of a trial, for each rung."""
        if self.updates is not None:
            return [self.updates // self.reduction_factor**rung for rung in reversed(range(self.rungs))]
        return [(self.minutes or 0) * share for share in self.shares()]

    def counts(self) -> list[int]:
        """Trials in each rung, without the run's own settings."""
        return [self.trials // self.reduction_factor**rung for rung in range(self.rungs)]

    def plan(self) -> str:
        """The trials and their cost in words."""
        unit, rungs = self.budget_unit, list(zip(self.counts(), self.budgets(), strict=True))
        each = sum((count + 1) * budget for count, budget in rungs)
        words = listing([f"{count + 1} of {budget:,.3g} {unit}" for count, budget in rungs])
        names, total = listing(list(self.runs)), f"{each * len(self.runs):,.4g} {unit}"
        return (
            f"{names}: {plural(self.rungs, 'rung')} of trials, {words}, one of them with the run's own settings; for "
            f"each run {each:,.4g} {unit}, in all {total}"
        )


def load_sweep_config(path: str | Path, overrides: list[str] | None = None) -> SweepConfig:
    """Read a YAML file, and apply `section.key=value` overrides. `tuned_runs` checks the runs and the space.

    Raises:
        FileNotFoundError: no such file.
        ValueError: as `load_run_config`; an impossible budget.
    """
    path = Path(path)
    config = build_section(SweepConfig, read_yaml(path, overrides), where="")
    beside = {name: path.parent / file for name, file in config.runs.items()}
    config.runs = {
        name: str(file if file.is_file() else find_config(config.runs[name])) for name, file in beside.items()
    }
    return config
