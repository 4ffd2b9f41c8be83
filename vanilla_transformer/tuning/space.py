# SPDX-License-Identifier: Apache-2.0
"""The runs of a sweep with their search spaces, and the configuration of each trial."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from vanilla_transformer.comparison.fairness import check_runs
from vanilla_transformer.training.configuration import RunConfig, model_config_of, run_config_of
from vanilla_transformer.training.yaml_sections import merged, plain, read_yaml
from vanilla_transformer.tuning.configuration import SweepConfig

Settings = dict[str, Any]  # dotted key of a run → its value, or name of a choice → name of its alternative

SECTIONS = [section.name for section in fields(RunConfig)]
SET_BY_THE_SWEEP = {"training.output_dir", "training.resume", "training.trackers", "model.model_type"}
SET_BY_THE_SWEEP |= {"training.max_updates", "training.max_minutes", "training.max_epochs"}


@dataclass(frozen=True)
class TunedRun:
    """One run of a sweep.

    Args:
        values: its sections, with the whole budget.
        space: key, or name of a choice → the values that are tried.
        own: the run's own settings.
        alternatives: name of a choice → name of an alternative → its changes to the run.
        first: settings that are tried first.
    """

    name: str
    values: dict[str, Any]
    space: dict[str, BaseDistribution]
    own: Settings
    alternatives: dict[str, dict[str, Settings]] = field(default_factory=dict)
    first: list[Settings] = field(default_factory=list)

    def changes(self, settings: Settings) -> Settings:
        """The settings with the keys of the alternatives that they choose."""
        chosen = [self.alternatives.get(key, {}).get(value, {key: value}) for key, value in settings.items()]
        return {key: value for each in chosen for key, value in each.items()}

    def overrides(self, settings: Settings) -> list[str]:
        """The overrides that give `train` these settings on its command line."""
        own = run_config_of(self.values)
        changes = {key: value for key, value in self.changes(settings).items() if value != value_of(own, key)}
        return [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in changes.items()]

    def trial(self, config: SweepConfig, settings: Settings, rung: int, folder: Path) -> RunConfig:
        """The configuration of a trial with these settings and the budget of this rung.

        Raises:
            ValueError: settings that do not go together.
        """
        trial = run_config_of(changed(self.values, self.changes(settings)))
        share, budget = config.shares()[rung], config.budgets()[rung]
        scaled = {key: _scaled(value_of(trial, key), share**power) for key, power in config.scaled.items()}
        end = {f"training.max_{config.budget_unit}": budget, "training.output_dir": str(folder)}
        return run_config_of(changed(trial.to_dict(), scaled | end))


def tuned_runs(config: SweepConfig) -> dict[str, TunedRun]:
    """The runs of a sweep; every value that is listed is checked.

    Raises:
        ValueError, FileNotFoundError: runs that cannot be used, or that differ in more than model and optimizer; a key
            or a value that a run refuses; a space without a run's own value, or with fewer settings than trials; a
            setting of `first` outside the space.
    """
    if unknown := sorted(config.run_space.keys() - config.runs.keys()):
        raise ValueError(f"run_space.{unknown[0]}: there is no such run; there are {', '.join(config.runs)}")
    end = {"max_updates": config.updates, "max_minutes": config.minutes, "max_epochs": None, "resume": True}
    training = config.training | end | {"trackers": [], "output_dir": config.output_dir}
    runs: dict[str, TunedRun] = {}
    for name, file in config.runs.items():
        values = merged(read_yaml(Path(file)), {"data": config.data | {"test": None}, "training": training})
        with _named(f"runs.{name}"):
            run = run_config_of(values)
            if run.data.train is None or run.data.validation is None:
                raise ValueError("data.train or data.validation is missing; a sweep needs both")
            if isinstance(run.data.validation, list):
                raise ValueError("data.validation is a list; a sweep scores one corpus")
            for key in config.scaled:
                value_of(run, key)
        runs[name] = tuned = TunedRun(name, values, {}, {})
        # The keys of all runs come first: their random values are then the same for all.
        keys = _keys("space", config.space) | _keys(f"run_space.{name}", config.run_space.get(name, {}))
        for key, leaf in keys.items():
            if leaf is None:  # taken out, by an override
                continue
            with _named(f"space of {name}, {key}"):
                if "." in key:
                    tuned.space[key], tuned.own[key] = _distribution(values, key, leaf), value_of(run, key)
                    _check_contains(tuned.space[key], tuned.own[key], "the run's own value")
                else:
                    tuned.alternatives[key] = choices = _alternatives(values, key, leaf)
                    tuned.space[key] = CategoricalDistribution(list(choices))
                    tuned.own[key] = next(choice for choice, changes in choices.items() if not changes)
        _check_changed_keys(tuned, config.metric)
        settings = math.prod(map(_size, tuned.space.values()))
        if settings <= config.trials:
            raise ValueError(f"trials={config.trials}: the space of {name} has {settings - 1} settings besides its own")
    check_runs("runs", {name: run_config_of(run.values) for name, run in runs.items()})
    _add_first(config.first, runs)
    return runs


def _add_first(first: Iterable[Mapping[str, Any]], runs: dict[str, TunedRun]) -> None:
    """Add the settings that are tried first to every run whose space has their keys."""
    for change in first:
        keys = _keys("first", change)
        users = [run for run in runs.values() if keys.keys() <= run.space.keys()]
        if not users:
            raise ValueError(f"first: no run has all of {', '.join(keys)} in its space")
        for run in users:
            with _named(f"first, for {run.name}"):
                settings = dict(run.own)
                for key, value in keys.items():
                    read = value_of(run_config_of(changed(run.values, {key: value})), key) if "." in key else value
                    _check_contains(run.space[key], read, key)
                    settings[key] = read
                run.first.append(settings)


def value_of(run: RunConfig, key: str) -> Any:
    """The value of a dotted key; a field of the model that the section lacks has its default.

    Raises:
        ValueError: there is no such key.
    """
    section, _, name = key.partition(".")
    owner = model_config_of(run.model) if section == "model" else getattr(run, section, None)
    if not hasattr(owner, name):
        raise ValueError(f"unknown key {key}")
    return getattr(owner, name)


def changed(values: dict[str, Any], settings: Settings) -> dict[str, Any]:
    """A copy of a run's sections with other values."""
    for key, value in settings.items():
        section, _, name = key.partition(".")
        values = merged(values, {section: {name: value}})
    return values


def _keys(where: str, sections: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted key → what the sections have for it, and name of a choice → its alternatives."""
    found = {}
    for section, keys in sections.items():
        if section not in SECTIONS:
            found[section] = keys
            continue
        if not isinstance(keys, dict):
            raise ValueError(
                f"{where}.{section}={plain(keys)!r} must be a section of keys, as in a run's configuration"
            )
        found |= {f"{section}.{name}": value for name, value in keys.items()}
    return found


def _distribution(values: dict[str, Any], key: str, leaf: Any) -> BaseDistribution:
    """The values of one key, each as the run's configuration reads it."""
    _check_may_change(key)
    bounds = leaf if isinstance(leaf, dict) and {"low", "high"} <= leaf.keys() <= {"low", "high", "log"} else None
    if bounds is None and not isinstance(leaf, list):
        raise ValueError(f"{plain(leaf)!r} must be a list of values, or {{low: …, high: …}}, perhaps with log: true")
    listed = leaf if bounds is None else [bounds["low"], bounds["high"]]
    found = [value_of(run_config_of(changed(values, {key: value})), key) for value in listed]
    if bounds is None:
        return CategoricalDistribution(list(dict.fromkeys(found)))
    kind = IntDistribution if all(isinstance(bound, int) for bound in found) else FloatDistribution
    return kind(*found, log=plain(bounds.get("log", False)))


def _alternatives(values: dict[str, Any], name: str, leaf: Any) -> dict[str, Settings]:
    """Name of each alternative of a choice → its changes; one has none, and is the run as it is."""
    if (
        not isinstance(leaf, dict)
        or {} not in leaf.values()
        or not all(isinstance(each, dict) for each in leaf.values())
    ):
        raise ValueError(
            f"it is none of the sections {', '.join(SECTIONS)}; a choice has alternatives, {{name: {{section: {{key: "
            "value}}}, and one of them is {name: {}}, the run as it is"
        )
    found = {}
    for alternative, change in leaf.items():
        keys = _keys(f"{name}.{alternative}", change)
        for key in keys:
            _check_may_change(key)
        tried = run_config_of(changed(values, keys))
        found[str(alternative)] = {key: value_of(tried, key) for key in keys}
    return found


def _check_may_change(key: str) -> None:
    if key in SET_BY_THE_SWEEP or key.startswith("data."):
        raise ValueError(f"a sweep does not change {key}")


def _check_changed_keys(run: TunedRun, metric: str) -> None:
    """Raise ValueError if two places of the space change the same key, or if the metric forbids a key."""
    changed_by: dict[str, str] = {}
    for name in run.space:
        choices = run.alternatives.get(name, {"": {name: None}})
        for key in {key for changes in choices.values() for key in changes}:
            if changed_by.setdefault(key, name) != name:
                raise ValueError(f"space of {run.name}: {changed_by[key]} and {name} both change {key}")
            if metric == "perplexity" and key.startswith("tokenizer."):
                raise ValueError(f"metric={metric!r} cannot compare tokenizers, which {name} changes; choose another")


def _check_contains(space: BaseDistribution, value: Any, what: str) -> None:
    if isinstance(space, CategoricalDistribution):
        is_inside = value in space.choices
    else:
        assert isinstance(space, IntDistribution | FloatDistribution)
        is_inside = value is not None and space.low <= value <= space.high
    if not is_inside:
        raise ValueError(f"{what}, {value!r}, must be in it, since all others are compared with it")


def _size(space: BaseDistribution) -> float:
    if isinstance(space, CategoricalDistribution):
        return len(space.choices)
    if isinstance(space, IntDistribution):
        return space.high - space.low + 1
    return 1 if space.single() else math.inf


def _scaled(value: Any, factor: float) -> Any:
    if value is None:
        return None
    return max(1, round(value * factor)) if isinstance(value, int) else value * factor


@contextmanager
def _named(where: str) -> Iterator[None]:
    """Errors begin with the place."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
