# SPDX-License-Identifier: Apache-2.0
"""One trial: a run of training in a process of its own, and the score of its finished model on validation data."""

import json
import logging
import math
import shutil
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from vanilla_transformer.comparison.significance import METRICS as TEXT_METRICS
from vanilla_transformer.comparison.significance import WORD_ERROR_RATE, corpus_score
from vanilla_transformer.console.outputs import write_atomically
from vanilla_transformer.data.corpus import CorpusConfig, load_corpus
from vanilla_transformer.inference.model_folder import load_model_folder
from vanilla_transformer.inference.translate import translate_lines
from vanilla_transformer.training.checkpoint import CHECKPOINTS
from vanilla_transformer.training.configuration import RunConfig, run_config_of
from vanilla_transformer.training.export import MODEL, RESULTS
from vanilla_transformer.training.loop import train
from vanilla_transformer.training.setup import Run
from vanilla_transformer.training.subprocess_run import run_in_subprocess
from vanilla_transformer.training.validation import BEST, mean_loss, perplexity

# name → (whether higher is better, unit)
METRICS = {name: (higher, unit) for name, (_, higher, unit) in TEXT_METRICS.items()} | {"perplexity": (False, "")}
SCORE, LOG = "validation_score.json", "training.log"  # in the trial's folder


def train_trial(config: RunConfig, metric: str) -> dict[str, Any]:
    """Train, resuming what was interrupted, and score.

    The trial's checkpoints are removed. Its model stays, and training.log has what the run showed.

    Returns:
        `score`, `updates`, `minutes` of training, `epochs`, `parameters` and `precision`.

    Raises:
        ValueError, RuntimeError: training failed.
        SystemExit, KeyboardInterrupt: it was stopped.
    """
    folder = Path(config.training.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    run_in_subprocess(_train_and_score, config.to_dict(), metric)
    facts = json.loads((folder / RESULTS).read_text("utf-8"))
    outcome = {"score": json.loads((folder / SCORE).read_text("utf-8")), "minutes": facts["training_seconds"] / 60}
    for name in (CHECKPOINTS, BEST):
        shutil.rmtree(folder / name, ignore_errors=True)
    outcome["precision"] = facts["mixed_precision"]
    return outcome | {name: facts[name] for name in ("updates", "epochs", "parameters")}


def _train_and_score(values: dict[str, Any], metric: str) -> None:
    folder = Path(values["training"]["output_dir"])
    # The output of a run would hide the progress of the sweep.
    with (folder / LOG).open("a", encoding="utf-8") as log, redirect_stdout(log), redirect_stderr(log):
        logging.basicConfig(level=logging.WARNING, format="%(message)s")
        disable_progress_bar()  # the bar of writing weights would interrupt the run's own
        score = score_finished_model(train(run_config_of(values)), metric)
    if not math.isfinite(score):
        raise ValueError(f"the {metric} is {score}")
    write_atomically(folder / SCORE, json.dumps(score))


def score_finished_model(run: Run, metric: str) -> float:
    """The score of a run's finished model on its validation data."""
    assert isinstance(run.config.data.validation, CorpusConfig)  # the configuration of the sweep refuses others
    [batches] = run.validation_batches.values()
    model: Any = load_model_folder(run.output_dir / MODEL, run.state.accelerator.device)
    if metric == "perplexity":
        return perplexity(mean_loss(model, batches, run.state.accelerator)[1])
    rows: Any = load_corpus(run.config.data.validation)
    pairs = [(row["source"], row["target"]) for row in rows]
    return score_pairs(model, run.tokenizer, pairs, metric, run.config.generation.batch_tokens)


def score_pairs(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[tuple[str, str]],
    metric: str,
    batch_tokens: int,
) -> float:
    """The BLEU or the word error rate of a model, decoding as its generation_config.json says."""
    references: dict[tuple[str, int], list[str]] = {}  # source, and the number of its pair or 0 → targets
    for number, (source, target) in enumerate(pairs):
        # A word has a pair for each of its pronunciations.
        references.setdefault((source, 0 if metric == WORD_ERROR_RATE else number), []).append(target)
    sources = [source for source, _ in references]
    translations = translate_lines(model, tokenizer, sources, max_batch_tokens=batch_tokens)
    return corpus_score(metric, [best[0].text for best in translations], list(references.values()))
