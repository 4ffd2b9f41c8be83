# SPDX-License-Identifier: Apache-2.0
"""Quality: the same data, tokenizer, trainer and decoding for models that differ in their architecture alone."""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub.dataclasses import strict
from transformers import PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from vanilla_transformer.comparison.crossing import find_crossings
from vanilla_transformer.comparison.fairness import (
    TRANSFORMER,
    check_parameters,
    check_precision,
    check_runs,
    choose_precision,
    count_parameters,
)
from vanilla_transformer.comparison.result_file import read_result, write_result
from vanilla_transformer.comparison.significance import METRICS, corpus_score, score_systems
from vanilla_transformer.data.cmudict import spell, write_pronunciation_corpus
from vanilla_transformer.data.corpus import CorpusConfig, load_corpus, load_references
from vanilla_transformer.data.tokenizer import load_tokenizer
from vanilla_transformer.inference.model_folder import load_model_folder
from vanilla_transformer.inference.translate import translate_lines
from vanilla_transformer.training.bounds import at_least, positive
from vanilla_transformer.training.configuration import RunConfig, run_config_of
from vanilla_transformer.training.export import MODEL, RESULTS
from vanilla_transformer.training.loop import train
from vanilla_transformer.training.run_tokenizer import prepare_tokenizer
from vanilla_transformer.training.subprocess_run import run_in_subprocess
from vanilla_transformer.training.vocabulary import vocabulary_fields
from vanilla_transformer.training.yaml_sections import Word, merged, read_yaml

UPDATES, TIME = "equal updates", "equal time"  # the budgets
BUCKETS = 4  # of source length, with about as many sentences in each
EXAMPLES = 10  # in the results


@strict
@dataclass(kw_only=True)
class QualityConfig:
    """One task in the section `quality`.

    Args:
        runs: model → file of its run's configuration; one of them "Transformer". They may differ in model and
            optimizer alone, and in parameters by 5%.
        metric: "word error rate" on the held-out words of the CMU Pronouncing Dictionary, or "BLEU" on `data.test`.
        minutes: a budget of training time, or several. Each is a run of its own that ends there, as does its schedule:
            a longer run that is scored half-way has not lowered its learning rate yet.
        updates: one number of updates, or several; `None`: runs end by time alone, and say how many updates they made.
        test_sentences: the first of the test set, which are scored; `None`: all.
        data, training, optimizer: values for these sections of every run.
    """

    runs: dict[str, str]
    metric: Literal["word error rate", "BLEU"]
    minutes: float | list[float] = positive()  # noqa: RUF009 -- declares a field
    updates: int | list[int] | None = at_least(1, default=None)  # noqa: RUF009 -- declares a field
    test_sentences: int | None = at_least(1, default=None)
    data: dict[str, Word | Any] = field(default_factory=dict)
    training: dict[str, Word | Any] = field(default_factory=dict)
    optimizer: dict[str, Word | Any] = field(default_factory=dict)

    @property
    def budgets(self) -> list["Budget"]:
        """The budgets in updates, then the budgets in minutes, the smallest first."""
        updates = [Budget(UPDATES, updates) for updates in _listed(self.updates)]
        return updates + [Budget(TIME, minutes) for minutes in _listed(self.minutes)]


def _listed(values: float | list[float] | list[int] | None) -> list[float]:
    return sorted({*values} if isinstance(values, list) else () if values is None else (values,))


@dataclass(frozen=True)
class Budget:
    """The limit of every model's run in a task, of one `kind`: updates or minutes."""

    kind: str
    amount: float

    @property
    def updates(self) -> int | None:
        return int(self.amount) if self.kind == UPDATES else None

    @property
    def minutes(self) -> float | None:
        return self.amount if self.kind == TIME else None

    def __str__(self) -> str:
        unit = "update" if self.kind == UPDATES else "minute"
        return f"{self.amount:,.10g} {unit}{'s' * (self.amount != 1)}"


def load_runs(name: str, task: QualityConfig, budget: Budget, folder: Path) -> dict[str, RunConfig]:
    """The configuration of every model's run with this budget, whose output folder is under `folder`.

    Raises:
        ValueError, FileNotFoundError: a configuration that cannot be used; runs that differ in more than the model.
    """
    runs = {}
    for model, file in task.runs.items():
        sections = {"data": task.data, "training": task.training, "optimizer": task.optimizer}
        values = merged(read_yaml(Path(file)), sections)
        limits = {"max_updates": budget.updates, "max_minutes": budget.minutes, "max_epochs": None}
        place = {"output_dir": str(folder / model / str(budget)), "trackers": []}
        values = merged(values, {"training": limits | place})
        runs[model] = run_config_of(values)
        if several := [key for key in ("train", "test") if isinstance(getattr(runs[model].data, key), list)]:
            raise ValueError(f"quality.{name}.data.{several[0]} is a list; a comparison takes one corpus")
        if task.metric == "BLEU" and runs[model].data.test is None:
            raise ValueError(f"quality.{name}.data.test is missing: BLEU needs its source and target")
    check_runs(f"quality.{name}", runs)
    return runs


def quality_settings(tasks: Mapping[str, QualityConfig], folder: Path) -> dict[str, Any]:
    """The settings that the results depend on: every run's resolved configuration, wherever its file stands.

    Raises:
        ValueError, FileNotFoundError: as `load_runs`.
    """
    return {
        name: {
            str(budget): {
                model: _run_settings(task, run) for model, run in load_runs(name, task, budget, folder / name).items()
            }
            for budget in task.budgets
        }
        for name, task in tasks.items()
    }


def _run_settings(task: QualityConfig, run: RunConfig) -> dict[str, Any]:
    without_folder = merged(run.to_dict(), {"training": {"output_dir": None}})
    return {"metric": task.metric, "test_sentences": task.test_sentences, "run": without_folder}


def measure_quality(
    tasks: Mapping[str, QualityConfig], folder: Path, device: torch.device, on_progress: Callable[[int, int, str], None]
) -> list[dict[str, Any]]:
    """Train every model within every budget, score it, and test the differences.

    Each run's translations are written into `folder`, and a restarted run resumes from its checkpoints.

    Returns:
        The part `quality` of the results; `vanilla_transformer.comparison.report` documents it.

    Raises:
        ValueError, FileNotFoundError: data or configurations that cannot be used, or that differ; a damaged file.
    """
    total, done, results = sum(len(task.budgets) * len(task.runs) for task in tasks.values()), 0, []
    for name, task in tasks.items():
        runs = load_runs(name, task, task.budgets[0], folder / name)
        config = runs[TRANSFORMER]
        sources, references = load_test_set(name, task, config)
        assert isinstance(config.data.train, CorpusConfig)
        corpus, output_dir = load_corpus(config.data.train), Path(config.training.output_dir)
        tokenizer = prepare_tokenizer(config.tokenizer, corpus, output_dir)
        parameters = {model: count_parameters(run.model, **vocabulary_fields(tokenizer)) for model, run in runs.items()}
        check_parameters(f"quality.{name}.runs", parameters)
        automatic = choose_precision(device)  # once, as the models train one after the other
        precisions = {model: run.training.mixed_precision.replace("auto", automatic) for model, run in runs.items()}
        sections = {model: run.model for model, run in runs.items()}
        for precision in precisions.values():
            check_precision(f"quality.{name}.runs: training.mixed_precision", precision, sections, device)
        outcomes: dict[Budget, dict[str, dict[str, Any]]] = {}  # budget → model → outcome
        for budget in task.budgets:
            outcomes[budget] = {}
            for model, run in load_runs(name, task, budget, folder / name).items():
                outcomes[budget][model] = _train_and_translate(task, run, sources, precisions[model], device)
                done += 1
                on_progress(done, total, f"{name}, {model}, {budget}")
        results.append(_score_task(name, task, outcomes, sources, references, tokenizer))
    return results


def load_test_set(name: str, task: QualityConfig, config: RunConfig) -> tuple[list[str], list[list[str]]]:
    """The sources and the references of each; the pronunciation corpus is written first if it does not exist."""
    if task.metric == "word error rate":
        if not isinstance(config.data.train, CorpusConfig) or config.data.train.source is None:
            raise ValueError(f"quality.{name}: its runs need data.train.source, where the dictionary's words are put")
        corpus = Path(config.data.train.source).parent
        if not (corpus / "test.json").exists():
            write_pronunciation_corpus(corpus)
        words: dict[str, list[str]] = json.loads((corpus / "test.json").read_text("utf-8"))
        sources, references = [spell(word) for word in words], list(words.values())
    else:
        assert isinstance(config.data.test, CorpusConfig)  # load_runs has checked
        sources, references = load_references(config.data.test)
    return sources[: task.test_sentences], references[: task.test_sentences]


def _train_and_translate(
    task: QualityConfig, run: RunConfig, sources: list[str], precision: str, device: torch.device
) -> dict[str, Any]:
    """The run's `facts` and the `outputs` for the sources; both are in a file beside its folder once it has ended."""
    folder = Path(run.training.output_dir)
    settings, file = _run_settings(task, run), folder.with_name(f"{folder.name}.json")
    outcome = read_result(file, settings)
    if outcome is None:
        run_in_subprocess(_train, merged(run.to_dict(), {"training": {"mixed_precision": precision}}))
        model, tokenizer = load_model_folder(folder / MODEL, device), load_tokenizer(folder / MODEL)
        translations = translate_lines(model, tokenizer, sources, max_batch_tokens=run.generation.batch_tokens)
        facts = json.loads((folder / RESULTS).read_text("utf-8"))
        outcome = {"facts": facts, "outputs": [best[0].text for best in translations]}
        write_result(file, settings, outcome)
    return outcome


def _train(values: dict[str, Any]) -> None:
    """Train in a process of its own, without the run's own scores: `measure_quality` scores all models alike."""
    values = merged(values, {"data": {"validation": None, "test": None}})
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    disable_progress_bar()  # that of writing weights would interrupt the run's own
    train(run_config_of(values))


def _score_task(
    name: str,
    task: QualityConfig,
    outcomes: Mapping[Budget, Mapping[str, dict[str, Any]]],
    sources: Sequence[str],
    references: Sequence[Sequence[str]],
    tokenizer: PreTrainedTokenizerBase,
) -> dict[str, Any]:
    buckets, budgets, signature = _length_buckets(sources, tokenizer), [], None
    for budget, by_model in outcomes.items():
        outputs = {model: outcome["outputs"] for model, outcome in by_model.items()}
        scored = score_systems(task.metric, outputs, references, TRANSFORMER)
        signature = scored["signature"]
        models = {}
        for model, outcome in by_model.items():
            keys = ("parameters", "updates", "epochs", "training_seconds", "mixed_precision")
            facts = {key: outcome["facts"][key] for key in keys}
            facts["target_tokens_per_second"] = outcome["facts"]["target_tokens"] / facts["training_seconds"]
            models[model] = scored["scores"][model] | facts
        by_length = []
        for label, indices in buckets:
            chosen = [references[i] for i in indices]
            scores = {m: corpus_score(task.metric, [texts[i] for i in indices], chosen) for m, texts in outputs.items()}
            by_length.append({"bucket": label, "sentences": len(indices), "scores": scores})
        examples = []
        for i, source in enumerate(sources[:EXAMPLES]):
            texts = {model: texts[i] for model, texts in outputs.items()}
            examples.append({"source": source, "reference": " | ".join(references[i]), "outputs": texts})
        result: dict[str, Any] = {"budget": budget.kind, "amount": str(budget)}
        result |= {"updates": budget.updates, "minutes": budget.minutes, "models": models, "paired": scored["paired"]}
        budgets.append(result | {"by_length": by_length, "examples": examples})
    _, higher_is_better, unit = METRICS[task.metric]
    measured = {
        "task": name,
        "metric": task.metric,
        "higher_is_better": higher_is_better,
        "unit": unit,
        "signature": signature,
        "sentences": len(sources),
        "vocab_size": len(tokenizer),
        "budgets": budgets,
    }
    return measured | {"crossings": find_crossings(measured)}


def _length_buckets(sources: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[tuple[str, list[int]]]:
    """(label, indices of the sentences) from the shortest sources to the longest; equal lengths stay together."""
    lengths = [len(ids) for ids in tokenizer(list(sources))["input_ids"]]  # tokens, with the end of the sentence
    ordered = sorted(lengths)
    edges = sorted({ordered[min(len(ordered) - 1, len(ordered) * (i + 1) // BUCKETS)] for i in range(BUCKETS)})
    buckets, low = [], ordered[0]
    for edge in edges:
        indices = [i for i, length in enumerate(lengths) if low <= length <= edge]
        buckets.append((f"{low}-{edge}" if low < edge else f"{low}", indices))
        low = edge + 1
    return buckets
