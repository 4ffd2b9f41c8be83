# SPDX-License-Identifier: Apache-2.0
"""Successive halving (Jamieson and Talwalkar, 2016), the same for every run of a sweep.

The first rung trains many settings for a short time, the next the best of them for longer, up to the whole budget.
Optuna's TPE proposes the settings of the first rung; the first ten are random, and the same for all runs where their
spaces are. Two things differ from Optuna's own pruners, on purpose:

- A trial begins anew at each rung, with the rung's budget as its end. A schedule that decays to the end makes a run
  that is cut off unlike a short run, so the reports of one long run could not be compared between settings. With as
  many rungs as there are, a rung costs as much as the first; going on from checkpoints would save less than a third.
- All trials of a rung end before the best go on. `SuccessiveHalvingPruner` and `HyperbandPruner` promote a trial as
  soon as it is good enough among those before it, so the order of arrival would decide how much training a run gets.
  Here all runs get the same number of trials with the same budgets.

The run's own settings take part in every rung, so that the best have something to be compared with.
"""

import itertools
import json
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import optuna
import yaml
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.samplers import RandomSampler, TPESampler
from optuna.trial import TrialState

from vanilla_transformer.comparison.result_file import read_result, write_result
from vanilla_transformer.console.outputs import write_atomically
from vanilla_transformer.data.cmudict import write_pronunciation_corpus
from vanilla_transformer.training.run_lock import lock_for_this_run
from vanilla_transformer.training.yaml_sections import merged
from vanilla_transformer.tuning.configuration import SweepConfig
from vanilla_transformer.tuning.report import write_report
from vanilla_transformer.tuning.space import TunedRun, tuned_runs
from vanilla_transformer.tuning.trial import METRICS, train_trial

OWN = 0  # the number of the trial with the run's own settings
TPE_ATTEMPTS = 10  # to propose settings that were not tried yet; it may insist on a few
TRIALS, RESULTS = "trials", "trials.json"  # in the sweep's folder

Trial = dict[str, Any]  # number, settings, and rungs: the outcome of each rung so far


class Search:
    """The trials of one run."""

    def __init__(self, run: TunedRun, config: SweepConfig, on_trial: Callable[[str, Trial], None]):
        self.run, self.config, self.on_trial = run, config, on_trial
        self.higher_is_better = METRICS[config.metric][0]
        self.study = optuna.create_study(direction="maximize" if self.higher_is_better else "minimize")
        for settings in (run.own, *run.first):
            self.study.enqueue_trial(settings, skip_if_exists=True)
        self.trials: list[Trial] = []

    def train_rung(self, rung: int) -> Iterator[None]:
        """Train the trials of a rung, one at each step."""
        if rung > 0:
            for trial in self._survivors(rung):
                yield self._train(trial)
            return
        for number in range(self.config.counts()[0] + 1):
            proposed = self._propose()
            trial = {"number": number, "settings": proposed.params, "rungs": []}
            self.trials.append(trial)
            self._train(trial)
            score = trial["rungs"][0]["score"]
            self.study.tell(proposed, score, TrialState.FAIL if score is None else TrialState.COMPLETE)
            yield

    def result(self) -> dict[str, Any]:
        """The run's part of the results."""
        best = self._ranked(self.config.rungs)
        with warnings.catch_warnings(action="ignore"):  # the evaluator warns where trials are few
            importance = get_param_importances(self.study, evaluator=PedAnovaImportanceEvaluator())
        facts = {"best": best[0]["number"] if best else None, "importance": importance, "trials": self.trials}
        return facts | {"overrides": self.run.overrides(best[0]["settings"]) if best else []}

    def _propose(self) -> optuna.Trial:
        """Settings that were not tried yet.

        The sampler's seed depends on the trial alone, so that a resumed sweep goes on with the same settings.
        """
        tried = [trial["settings"] for trial in self.trials]
        for attempt in itertools.count():
            sampler = TPESampler if attempt < TPE_ATTEMPTS else RandomSampler
            self.study.sampler = sampler(seed=self.config.seed + 1000 * len(tried) + attempt)
            proposed = self.study.ask(self.run.space)
            if proposed.params not in tried:
                return proposed
            self.study.tell(proposed, state=TrialState.FAIL)
        raise AssertionError

    def _survivors(self, rung: int) -> list[Trial]:
        """The run's own settings, and the best others of the rung before."""
        others = [trial for trial in self._ranked(rung) if trial["number"] != OWN]
        return [self.trials[OWN], *others[: self.config.counts()[rung]]]

    def _ranked(self, rungs: int) -> list[Trial]:
        """The trials that have a score in their last of so many rungs, the best first."""
        scored = [
            trial for trial in self.trials if len(trial["rungs"]) == rungs and trial["rungs"][-1]["score"] is not None
        ]
        return sorted(scored, key=lambda trial: trial["rungs"][-1]["score"], reverse=self.higher_is_better)

    def _train(self, trial: Trial) -> None:
        """Train a trial in its next rung, or read its outcome; a failure is an outcome without a score.

        Raises:
            ValueError: the run's own settings fail in the first rung; an outcome that was made with other settings.
        """
        rung = len(trial["rungs"])
        place = Path(self.config.output_dir) / TRIALS / self.run.name / f"{trial['number']:03}" / f"rung_{rung + 1}"
        try:
            config = self.run.trial(self.config, trial["settings"], rung, place)
        except ValueError as error:  # settings that do not go together
            outcome = _failure(error)
        else:
            file, run = place / "outcome.json", merged(config.to_dict(), {"training": {"output_dir": None}})
            settings = {"metric": self.config.metric, "run": run}
            outcome = read_result(file, settings)
            if outcome is None:
                place.mkdir(parents=True, exist_ok=True)
                write_result(file, settings, None)  # other settings are refused while it trains, too
                try:
                    outcome = train_trial(config, self.config.metric) | {"error": None}
                except (ValueError, RuntimeError) as error:
                    if trial["number"] == OWN and rung == 0:
                        raise ValueError(f"{self.run.name} with its own settings: {error}") from error
                    outcome = _failure(error)
                write_result(file, settings, outcome)
        trial["rungs"].append(outcome)
        self.on_trial(self.run.name, trial)


def sweep(config: SweepConfig, on_trial: Callable[[str, Trial], None]) -> dict[str, Any]:
    """Train every trial that has no outcome in the folder; write trials.json, report.md and its plots.

    Args:
        on_trial: called with the name of a run and a trial that has ended a rung.

    Returns:
        The results, with the schema of `vanilla_transformer.tuning.report`.

    Raises:
        ValueError, FileNotFoundError: as `tuned_runs`; the folder holds something else, is in use, or was made with
            other settings; a run that fails with its own settings.
        SystemExit, KeyboardInterrupt: a trial was stopped; the same command goes on.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    searches, folder = [Search(run, config, on_trial) for run in tuned_runs(config).values()], Path(config.output_dir)
    if folder.exists() and any(folder.iterdir()) and not (folder / TRIALS).is_dir():
        raise ValueError(f"output_dir={folder} holds files, and no sweep; choose another folder")
    (folder / TRIALS).mkdir(parents=True, exist_ok=True)
    lock_for_this_run(folder)
    files = {name: os.path.relpath(file, folder) for name, file in config.runs.items()}
    values = asdict(config) | {"runs": files}
    write_atomically(folder / "config.yaml", yaml.safe_dump(values, sort_keys=False, allow_unicode=True))
    _write_pronunciations(searches[0].run)
    for rung in range(config.rungs):
        # In turns, so that a slow hour of the machine slows all runs alike.
        for _ in itertools.zip_longest(*(search.train_rung(rung) for search in searches)):
            pass
    higher_is_better, unit = METRICS[config.metric]
    results = {
        "metric": config.metric,
        "higher_is_better": higher_is_better,
        "unit": unit,
        "budget_unit": config.budget_unit,
        "budgets": config.budgets(),
        "plan": config.plan(),
        "runs": {search.run.name: search.result() for search in searches},
    }
    write_atomically(folder / RESULTS, json.dumps(results, indent=1) + "\n")
    write_report(results, folder)
    return results


def _failure(error: Exception) -> dict[str, Any]:
    return {"score": None, "error": str(error)}


def _write_pronunciations(run: TunedRun) -> None:
    """Write the quickstart's corpus where its files are asked for and are not there yet."""
    train = run.values["data"]["train"]
    source = Path("" if isinstance(train, list) else train.get("source") or "")
    if source.name == "train.spelling" and not source.exists():
        write_pronunciation_corpus(source.parent)
