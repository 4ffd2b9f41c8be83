# SPDX-License-Identifier: Apache-2.0
"""Quality: the same data, tokenizer, trainer and decoding, and models that differ in nothing but their architecture."""

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub.dataclasses import strict
from transformers import PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from vanilla_transformer.comparison.fairness import (
    TRANSFORMER,
    check_has_transformer,
    check_parameters,
    check_runs,
    parameters_of,
)
from vanilla_transformer.comparison.result_file import read_result, write_result
from vanilla_transformer.comparison.significance import METRICS, corpus_score, score_systems
from vanilla_transformer.data.cmudict import spell, write_pronunciation_corpus
from vanilla_transformer.data.corpus import load_corpus, load_references
from vanilla_transformer.data.tokenizer import load_tokenizer
from vanilla_transformer.inference.model_folder import load_model_folder
from vanilla_transformer.inference.translate import translate_lines
from vanilla_transformer.training.configuration import RunConfig, run_config_of
from vanilla_transformer.training.device import bfloat16_is_faster
from vanilla_transformer.training.export import MODEL, RESULTS
from vanilla_transformer.training.loop import train
from vanilla_transformer.training.run_tokenizer import prepare_tokenizer
from vanilla_transformer.training.subprocess_run import run_in_subprocess
from vanilla_transformer.training.yaml_sections import merged, read_yaml

UPDATES, TIME = "equal updates", "equal time"
BUCKETS = 4  # of source length, with about as many sentences in each
EXAMPLES = 10  # kept in the results


@strict
@dataclass(kw_only=True)
class QualityConfig:
    """One task in the section `quality`.

    Args:
        runs: model → file of its run's configuration; one of them "Transformer". They may differ in model and
            optimizer alone, and in parameters by 5%.
        metric: "word error rate" on the held-out words of the CMU Pronouncing Dictionary, or "BLEU" on `data.test`.
        updates: of the optimizer, for the comparison at equal updates.
        minutes: of training, for the comparison at equal time.
        test_sentences: how many of the test set are scored; `None`: all.
        data, training: values for these sections of every run.

    Raises:
        ValueError: fewer than two runs, or no Transformer among them; a number below what is possible.
    """

    runs: dict[str, str]
    metric: Literal["word error rate", "BLEU"]
    updates: int
    minutes: float
    test_sentences: int | None = None
    data: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        check_has_transformer("runs", self.runs)
        if len(self.runs) < 2:
            raise ValueError(f"runs={self.runs!r} must name at least two")
        for name in ("updates", "test_sentences"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        if self.minutes <= 0:
            raise ValueError(f"minutes={self.minutes} must be greater than 0")


@dataclass(frozen=True)
class TestSet:
    """What all models answer; each source has one reference or several."""

    __test__ = False  # not for pytest

    sources: list[str]
    references: list[list[str]]


def load_runs(name: str, task: QualityConfig, folder: Path) -> dict[str, RunConfig]:
    """The configuration of every run, in its own folder under `folder`.

    Raises:
        ValueError, FileNotFoundError: a configuration that cannot be used; runs that differ in more than the model.
    """
    runs = {}
    for model, file in task.runs.items():
        values = merged(read_yaml(Path(file)), {"data": task.data, "training": task.training})
        limits = {"max_updates": task.updates, "max_minutes": task.minutes, "max_epochs": None}
        # The comparison scores every model at its end, on the same sentences: `_train` leaves the run's own scores out.
        values = merged(values, {"training": limits | {"output_dir": str(folder / model), "trackers": []}})
        runs[model] = run_config_of(values)
        if task.metric == "BLEU" and runs[model].data.test is None:
            raise ValueError(f"quality.{name}.data.test is missing: BLEU needs its source and target")
    check_runs(f"quality.{name}", runs)
    return runs


def measure_quality(
    tasks: Mapping[str, QualityConfig], folder: Path, device: torch.device, on_progress: Callable[[int, int, str], None]
) -> list[dict[str, Any]]:
    """Train every run until both budgets are spent, score it at each, and test the differences.

    A run stops at the budget that it reaches first, is scored, and goes on to the other. Each outcome leaves a file in
    `folder`, and runs resume from their checkpoints.

    Returns:
        For each task `task`, `metric`, `higher_is_better`, `unit`, `signature`, `sentences`, `vocab_size` and
        `budgets`: `budget`, `amount`, `models`, `paired`, `by_length` and `examples`.

    Raises:
        ValueError, FileNotFoundError: data or configurations that cannot be used, or that differ; a damaged file.
    """
    runs = {name: load_runs(name, task, folder / name) for name, task in tasks.items()}  # before any work
    total, done, found = 2 * sum(map(len, runs.values())), 0, []
    for name, task in tasks.items():
        config = runs[name][TRANSFORMER]
        test_set = load_test_set(name, task, config)
        tokenizer = _tokenizer(config)
        precision = config.training.mixed_precision
        if precision == "auto":  # one answer for all models, which train one after the other
            precision = "bf16" if bfloat16_is_faster() else "no"
        sizes = {model: parameters_of(run.model, len(tokenizer)) for model, run in runs[name].items()}
        check_parameters(f"quality.{name}.runs", sizes)
        outcomes: dict[str, dict[str, Any]] = {}
        for model, config in runs[name].items():
            for budget, outcome in _spend_budgets(task, config, test_set, precision, folder / name / model, device):
                outcomes.setdefault(model, {})[budget] = outcome
                done += 1
                on_progress(done, total, f"{name}, {model}, {budget}")
        found.append(_compared(name, task, outcomes, test_set, tokenizer))
    return found


def load_test_set(name: str, task: QualityConfig, config: RunConfig) -> TestSet:
    """The test sentences; the pronunciation corpus is written first where it is not there yet."""
    if task.metric == "word error rate":
        if config.data.train is None or config.data.train.source is None:
            raise ValueError(f"quality.{name}: its runs need data.train.source, where the dictionary's words are put")
        corpus = Path(config.data.train.source).parent
        if not (corpus / "test.json").exists():
            write_pronunciation_corpus(corpus)
        words: dict[str, list[str]] = json.loads((corpus / "test.json").read_text("utf-8"))
        sources, references = [spell(word) for word in words], list(words.values())
    else:
        assert config.data.test is not None  # load_runs has looked
        sources, references = load_references(config.data.test)
    return TestSet(sources[: task.test_sentences], references[: task.test_sentences])


def _spend_budgets(
    task: QualityConfig, config: RunConfig, test_set: TestSet, precision: str, folder: Path, device: torch.device
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(budget, outcome) of one run, whichever budget it reaches first."""
    settings = _settings(task, config)
    limits = {UPDATES: {"max_updates": task.updates}, TIME: {"max_minutes": task.minutes}}
    missing = []
    for budget in limits:
        outcome = read_result(folder / f"{budget}.json", settings)
        if outcome is None:
            missing.append(budget)
        else:
            yield budget, outcome
    while missing:
        stop = {"max_updates": None, "max_minutes": None}
        for budget in missing:
            stop |= limits[budget]
        run_in_subprocess(_train, merged(config.to_dict(), {"training": stop | {"mixed_precision": precision}}))
        facts = json.loads((folder / RESULTS).read_text("utf-8"))
        reached = UPDATES if UPDATES in missing and facts["updates"] >= task.updates else TIME
        if reached == UPDATES and facts["updates"] != task.updates:
            raise ValueError(f"{folder} has {facts['updates']} updates already, more than {task.updates}; remove it")
        assert reached in missing
        missing.remove(reached)
        translations = translate_lines(
            load_model_folder(folder / MODEL, device),
            load_tokenizer(folder / MODEL),
            test_set.sources,
            max_batch_tokens=config.generation.batch_tokens,
        )
        outcome = {"facts": facts, "outputs": [best[0].text for best in translations]}
        write_result(folder / f"{reached}.json", settings, outcome)
        yield reached, outcome


def _tokenizer(config: RunConfig) -> PreTrainedTokenizerBase:
    """The one that every run will make of the same data, to know the vocabulary before any training."""
    assert config.data.train is not None
    return prepare_tokenizer(config.tokenizer, load_corpus(config.data.train), Path(config.training.output_dir))


def _train(values: dict[str, Any]) -> None:
    """In a process of its own."""
    values = merged(values, {"data": {"validation": None, "test": None}})
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    disable_progress_bar()  # of writing weights, which would tear the run's own bar
    train(run_config_of(values))


def _compared(
    name: str,
    task: QualityConfig,
    outcomes: Mapping[str, Mapping[str, dict[str, Any]]],
    test_set: TestSet,
    tokenizer: PreTrainedTokenizerBase,
) -> dict[str, Any]:
    facts = {model: by_budget[UPDATES]["facts"] for model, by_budget in outcomes.items()}
    (vocab_size,) = {one["vocab_size"] for one in facts.values()}  # of the same data and tokenizer, as was checked
    buckets = _length_buckets(test_set.sources, tokenizer)
    _, higher_is_better, unit = METRICS[task.metric]
    budgets, signature = [], None
    for budget, amount in (
        (UPDATES, f"{task.updates:,} updates"),
        (TIME, f"{task.minutes:g} minute{'s' * (task.minutes != 1)}"),
    ):
        of_budget = {model: by_budget[budget] for model, by_budget in outcomes.items()}
        outputs = {model: outcome["outputs"] for model, outcome in of_budget.items()}
        scored = score_systems(task.metric, outputs, test_set.references, TRANSFORMER)
        signature = scored["signature"]
        budgets.append(
            {
                "budget": budget,
                "amount": amount,
                "models": {
                    model: scored["scores"][model] | _training_facts(outcome["facts"])
                    for model, outcome in of_budget.items()
                },
                "paired": scored["paired"],
                "by_length": [_bucket(label, indices, task.metric, outputs, test_set) for label, indices in buckets],
                "examples": [
                    {
                        "source": test_set.sources[i],
                        "reference": " | ".join(test_set.references[i]),
                        "outputs": {model: texts[i] for model, texts in outputs.items()},
                    }
                    for i in range(min(EXAMPLES, len(test_set.sources)))
                ],
            }
        )
    return {
        "task": name,
        "metric": task.metric,
        "higher_is_better": higher_is_better,
        "unit": unit,
        "signature": signature,
        "sentences": len(test_set.sources),
        "vocab_size": vocab_size,
        "budgets": budgets,
    }


def _training_facts(facts: Mapping[str, Any]) -> dict[str, Any]:
    known = {name: facts[name] for name in ("parameters", "updates", "epochs", "training_seconds")}
    return known | {"target_tokens_per_second": facts["target_tokens"] / facts["training_seconds"]}


def _length_buckets(sources: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[tuple[str, list[int]]]:
    """(label, indices of the sentences) from the shortest sources to the longest; equal lengths stay together."""
    lengths = [len(ids) for ids in tokenizer(list(sources))["input_ids"]]  # tokens, with the end of the sentence
    ordered = sorted(lengths)
    edges = sorted({ordered[min(len(ordered) - 1, len(ordered) * (i + 1) // BUCKETS)] for i in range(BUCKETS)})
    buckets, low = [], ordered[0]
    for edge in edges:
        indices = [i for i, length in enumerate(lengths) if low <= length <= edge]
        if indices:
            buckets.append((f"{low}-{edge}" if low < edge else f"{low}", indices))
        low = edge + 1
    return buckets


def _bucket(
    label: str, indices: Sequence[int], metric: str, outputs: Mapping[str, Sequence[str]], test_set: TestSet
) -> dict[str, Any]:
    references = [test_set.references[i] for i in indices]
    scores = {model: corpus_score(metric, [texts[i] for i in indices], references) for model, texts in outputs.items()}
    return {"bucket": label, "sentences": len(indices), "scores": scores}


def settings_of(tasks: Mapping[str, QualityConfig], folder: Path) -> dict[str, Any]:
    """What the results depend on: every run's resolved configuration, wherever its file stands.

    Raises:
        ValueError, FileNotFoundError: as `load_runs`.
    """
    runs = {name: load_runs(name, task, folder / name) for name, task in tasks.items()}
    return {
        name: {model: _settings(task, config) for model, config in runs[name].items()} for name, task in tasks.items()
    }


def _settings(task: QualityConfig, config: RunConfig) -> dict[str, Any]:
    return {
        "metric": task.metric,
        "test_sentences": task.test_sentences,
        "run": merged(config.to_dict(), {"training": {"output_dir": None}}),
    }
