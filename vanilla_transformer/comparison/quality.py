# SPDX-License-Identifier: Apache-2.0
"""Quality: the same data, tokenizer, trainer and decoding for models that differ in their architecture alone."""

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
    check_parameters,
    check_precision,
    check_runs,
    count_parameters,
)
from vanilla_transformer.comparison.result_file import read_result, write_result
from vanilla_transformer.comparison.significance import METRICS, corpus_score, score_systems
from vanilla_transformer.data.cmudict import spell, write_pronunciation_corpus
from vanilla_transformer.data.corpus import load_corpus, load_references
from vanilla_transformer.data.tokenizer import load_tokenizer
from vanilla_transformer.inference.model_folder import load_model_folder
from vanilla_transformer.inference.translate import translate_lines
from vanilla_transformer.training.bounds import at_least, positive
from vanilla_transformer.training.configuration import RunConfig, run_config_of
from vanilla_transformer.training.device import bfloat16_is_faster
from vanilla_transformer.training.export import MODEL, RESULTS
from vanilla_transformer.training.loop import train
from vanilla_transformer.training.run_tokenizer import prepare_tokenizer
from vanilla_transformer.training.subprocess_run import run_in_subprocess
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
        updates: of the optimizer, the budget at equal updates.
        minutes: of training, the budget at equal time.
        test_sentences: the first of the test set, which are scored; `None`: all.
        data, training: values for these sections of every run.
    """

    runs: dict[str, str]
    metric: Literal["word error rate", "BLEU"]
    updates: int = at_least(1)
    minutes: float = positive()
    test_sentences: int | None = at_least(1, default=None)
    data: dict[str, Word | Any] = field(default_factory=dict)
    training: dict[str, Word | Any] = field(default_factory=dict)


def load_runs(name: str, task: QualityConfig, folder: Path) -> dict[str, RunConfig]:
    """The configuration of every run, whose output folder is under `folder`.

    Raises:
        ValueError, FileNotFoundError: a configuration that cannot be used; runs that differ in more than the model.
    """
    runs = {}
    for model, file in task.runs.items():
        values = merged(read_yaml(Path(file)), {"data": task.data, "training": task.training})
        budget = {"max_updates": task.updates, "max_minutes": task.minutes, "max_epochs": None}
        values = merged(values, {"training": budget | {"output_dir": str(folder / model), "trackers": []}})
        runs[model] = run_config_of(values)
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
        name: {model: _run_settings(task, run) for model, run in load_runs(name, task, folder / name).items()}
        for name, task in tasks.items()
    }


def _run_settings(task: QualityConfig, run: RunConfig) -> dict[str, Any]:
    without_folder = merged(run.to_dict(), {"training": {"output_dir": None}})
    return {"metric": task.metric, "test_sentences": task.test_sentences, "run": without_folder}


def measure_quality(
    tasks: Mapping[str, QualityConfig], folder: Path, device: torch.device, on_progress: Callable[[int, int, str], None]
) -> list[dict[str, Any]]:
    """Train every run until both budgets are spent, score it at each, and test the differences.

    A run stops at the budget that it reaches first, translates, and resumes until the other. The translations at each
    budget are written into `folder`, and a restarted run resumes from its checkpoints.

    Returns:
        The part `quality` of the results; `vanilla_transformer.comparison.report` documents it.

    Raises:
        ValueError, FileNotFoundError: data or configurations that cannot be used, or that differ; a damaged file.
    """
    total, done, results = 2 * sum(len(task.runs) for task in tasks.values()), 0, []
    for name, task in tasks.items():
        runs = load_runs(name, task, folder / name)
        config = runs[TRANSFORMER]
        sources, references = load_test_set(name, task, config)
        assert config.data.train is not None
        corpus, output_dir = load_corpus(config.data.train), Path(config.training.output_dir)
        tokenizer = prepare_tokenizer(config.tokenizer, corpus, output_dir)
        parameters = {model: count_parameters(run.model, len(tokenizer)) for model, run in runs.items()}
        check_parameters(f"quality.{name}.runs", parameters)
        precision = config.training.mixed_precision
        if precision == "auto":  # one choice for all models, which train one after the other
            # On a GPU recurrent layers would not compute in bfloat16.
            precision = "bf16" if device.type == "cpu" and bfloat16_is_faster() else "no"
        sections = {model: run.model for model, run in runs.items()}
        check_precision(f"quality.{name}.runs: training.mixed_precision", precision, sections, device)
        outcomes: dict[str, dict[str, Any]] = {UPDATES: {}, TIME: {}}  # budget → model → outcome
        for model, run in runs.items():
            for budget, outcome in _train_to_budgets(task, run, sources, precision, folder / name / model, device):
                outcomes[budget][model] = outcome
                done += 1
                on_progress(done, total, f"{name}, {model}, {budget}")
        results.append(_score_task(name, task, outcomes, sources, references, tokenizer))
    return results


def load_test_set(name: str, task: QualityConfig, config: RunConfig) -> tuple[list[str], list[list[str]]]:
    """The sources and the references of each; the pronunciation corpus is written first if it does not exist."""
    if task.metric == "word error rate":
        if config.data.train is None or config.data.train.source is None:
            raise ValueError(f"quality.{name}: its runs need data.train.source, where the dictionary's words are put")
        corpus = Path(config.data.train.source).parent
        if not (corpus / "test.json").exists():
            write_pronunciation_corpus(corpus)
        words: dict[str, list[str]] = json.loads((corpus / "test.json").read_text("utf-8"))
        sources, references = [spell(word) for word in words], list(words.values())
    else:
        assert config.data.test is not None  # load_runs has checked
        sources, references = load_references(config.data.test)
    return sources[: task.test_sentences], references[: task.test_sentences]


def _train_to_budgets(
    task: QualityConfig, run: RunConfig, sources: list[str], precision: str, folder: Path, device: torch.device
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(budget, outcome), in the order in which the run reaches them."""
    settings, missing = _run_settings(task, run), []
    for budget in (UPDATES, TIME):
        outcome = read_result(folder / f"{budget}.json", settings)
        if outcome is None:
            missing.append(budget)
        else:
            yield budget, outcome
    while missing:
        limits: dict[str, Any] = {"mixed_precision": precision}
        limits["max_updates"] = task.updates if UPDATES in missing else None
        limits["max_minutes"] = task.minutes if TIME in missing else None
        run_in_subprocess(_train, merged(run.to_dict(), {"training": limits}))
        facts = json.loads((folder / RESULTS).read_text("utf-8"))
        reached = UPDATES if UPDATES in missing and facts["updates"] >= task.updates else TIME
        if reached == UPDATES and facts["updates"] != task.updates:
            raise ValueError(f"{folder} has {facts['updates']} updates already, more than {task.updates}; remove it")
        missing.remove(reached)
        model, tokenizer = load_model_folder(folder / MODEL, device), load_tokenizer(folder / MODEL)
        translations = translate_lines(model, tokenizer, sources, max_batch_tokens=run.generation.batch_tokens)
        outcome = {"facts": facts, "outputs": [best[0].text for best in translations]}
        write_result(folder / f"{reached}.json", settings, outcome)
        yield reached, outcome


def _train(values: dict[str, Any]) -> None:
    """Train in a process of its own, without the run's own scores: `measure_quality` scores all models alike."""
    values = merged(values, {"data": {"validation": None, "test": None}})
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    disable_progress_bar()  # that of writing weights would interrupt the run's own
    train(run_config_of(values))


def _score_task(
    name: str,
    task: QualityConfig,
    outcomes: Mapping[str, Mapping[str, dict[str, Any]]],
    sources: Sequence[str],
    references: Sequence[Sequence[str]],
    tokenizer: PreTrainedTokenizerBase,
) -> dict[str, Any]:
    buckets, budgets, signature = _length_buckets(sources, tokenizer), [], None
    amounts = {UPDATES: f"{task.updates:,} updates", TIME: f"{task.minutes:g} minute{'s' * (task.minutes != 1)}"}
    for budget, amount in amounts.items():
        outputs = {model: outcome["outputs"] for model, outcome in outcomes[budget].items()}
        scored = score_systems(task.metric, outputs, references, TRANSFORMER)
        signature = scored["signature"]
        models = {}
        for model, outcome in outcomes[budget].items():
            facts = {key: outcome["facts"][key] for key in ("parameters", "updates", "epochs", "training_seconds")}
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
        result = {"budget": budget, "amount": amount, "models": models, "paired": scored["paired"]}
        budgets.append(result | {"by_length": by_length, "examples": examples})
    _, higher_is_better, unit = METRICS[task.metric]
    return {
        "task": name,
        "metric": task.metric,
        "higher_is_better": higher_is_better,
        "unit": unit,
        "signature": signature,
        "sentences": len(sources),
        "vocab_size": len(tokenizer),
        "budgets": budgets,
    }


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
