# SPDX-License-Identifier: Apache-2.0
"""Validation: the nll of all pairs, and BLEU by decoding; every process does its share."""

import json
import math
import statistics
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from accelerate import Accelerator

from vanilla_transformer.distributed.fsdp import is_sharded, unsharded_copy
from vanilla_transformer.distributed.processes import sum_over_processes, wait_for_everyone
from vanilla_transformer.evaluation.translation_quality import score_translations
from vanilla_transformer.inference.translate import translate_on_all_processes
from vanilla_transformer.seq2seq_base import BaseForConditionalGeneration
from vanilla_transformer.training.atomic_folder import atomic_folder
from vanilla_transformer.training.batch import PreparedAhead, to_device
from vanilla_transformer.training.lora import save_weights
from vanilla_transformer.training.setup import Run
from vanilla_transformer.training.train_state import Progress

BEST = "best"  # in the run's output_dir
FIGURES = "validation.json"  # in that folder
EXAMPLES = 3  # translations to show; one of each of a list
FIGURES_OF_CORPUS = ("loss", "perplexity", "bleu", "chrf", "sentence_error_rate")


@dataclass(frozen=True)
class Validation:
    """Results on the validation corpus, or the means of those on each of a list.

    Args:
        loss: smoothed, mean over target tokens, in nats.
        perplexity: exp of the unsmoothed negative log-likelihood per target token (of the run's tokenizer).
        bleu, chrf: sacreBLEU's, of the first `validation_sentences`.
        bleu_signature, chrf_signature: sacreBLEU's.
        sentence_error_rate: share of them, from 0 to 1, whose translation is not the reference, white space aside.
        is_best: whether it is the run's best so far by `training.best_by`, on `training.best_on` if that is given; the
            model is then in `output_dir/best`.
        examples: a few (source, translation, reference).
        corpora: for a list, the `FIGURES_OF_CORPUS` of each by its name.
    """

    loss: float
    perplexity: float
    bleu: float
    bleu_signature: str
    chrf: float
    chrf_signature: str
    sentence_error_rate: float
    is_best: bool
    examples: list[tuple[str, str, str]]
    corpora: dict[str, dict[str, float]] = field(default_factory=dict)


def perplexity(negative_log_likelihood: float) -> float:
    """exp of nats per token; infinite where a float cannot hold it."""
    return math.exp(negative_log_likelihood) if negative_log_likelihood < 700 else math.inf


@torch.compiler.set_stance("force_eager")  # other modes would need other graphs, for few batches
def validate(run: Run) -> Validation:
    """Score the model on the validation corpus, in every process; save the best to `output_dir/best`.

    Counts the validation in the run's progress, unless these weights have been counted before.
    """
    accelerator, model = run.state.accelerator, run.state.bare_model()
    if is_sharded(model):
        model = unsharded_copy(model, accelerator.device)
    scores = {name: _score(run, model, name) for name in run.corpora.validation}
    is_list = isinstance(run.config.data.validation, list)
    figures = {name: {key: score[key] for key in FIGURES_OF_CORPUS} for name, score in scores.items()}
    mean = {key: statistics.fmean(values[key] for values in figures.values()) for key in FIGURES_OF_CORPUS}
    training, any_score = run.config.training, next(iter(scores.values()))
    value = (mean if training.best_on is None else figures[training.best_on])[training.best_by]
    is_best = _count(run.state.progress, value if training.best_by == "bleu" else -value)
    result = Validation(
        **mean,
        bleu_signature=any_score["bleu_signature"],
        chrf_signature=any_score["chrf_signature"],
        is_best=is_best,
        examples=[example for score in scores.values() for example in score["examples"][: 1 if is_list else EXAMPLES]],
        corpora=figures if is_list else {},
    )
    if is_best:
        if accelerator.is_main_process:
            with atomic_folder(run.output_dir / BEST) as folder:
                save_weights(model, folder)
                run.tokenizer.save_pretrained(folder)
                (folder / FIGURES).write_text(json.dumps(asdict(result), indent=2) + "\n", encoding="utf-8")
        wait_for_everyone()
    return result


def _score(run: Run, model: BaseForConditionalGeneration, name: str) -> dict[str, Any]:
    """The figures, signatures and examples of one validation corpus."""
    corpus, beams = run.corpora.validation[name], run.config.training.validation_beams
    loss, nll = mean_loss(model, run.validation_batches[name], run.state.accelerator)
    sentences = corpus.pairs[: run.config.training.validation_sentences]
    sources, references = sentences["source"], sentences["target"]
    options = {"max_batch_tokens": run.config.generation.batch_tokens} | ({} if beams is None else {"num_beams": beams})
    translations = translate_on_all_processes(model, run.tokenizer, sources, **options, **corpus.options)
    hypotheses = [best[0].text for best in translations]
    pairs = zip(hypotheses, references, strict=True)
    wrong = sum(hypothesis.split() != reference.split() for hypothesis, reference in pairs)
    return {
        "loss": loss,
        "perplexity": perplexity(nll),
        "sentence_error_rate": wrong / len(references),
        "examples": list(zip(sources[:EXAMPLES], hypotheses[:EXAMPLES], references[:EXAMPLES], strict=True)),
        **score_translations(hypotheses, references),
    }


def _count(progress: Progress, score: float) -> bool:
    """Whether a score is the best so far; NaN never is."""
    is_best = not math.isnan(score) and (progress.best_score is None or score > progress.best_score)
    if is_best:
        progress.best_score, progress.validations_since_best = score, 0
    else:  # a run that has ended validates its last weights again
        progress.validations_since_best += progress.updates > progress.validated_updates
    progress.validated_updates = progress.updates
    return is_best


def best_validation(run: Run) -> Validation:
    """The results of the model in `output_dir/best`."""
    return Validation(**json.loads((run.output_dir / BEST / FIGURES).read_text("utf-8")))


@torch.no_grad()
def mean_loss(
    model: BaseForConditionalGeneration, batches: PreparedAhead, accelerator: Accelerator
) -> tuple[float, float]:
    """Mean smoothed loss and mean unsmoothed negative log-likelihood per target token, over all processes."""
    model.eval()
    sums = torch.zeros(3, device=accelerator.device)  # loss, negative log-likelihood, target tokens
    for batch in batches:
        inputs = {name: to_device(tensor, accelerator.device) for name, tensor in batch.items()}
        with accelerator.autocast():
            output = model(**inputs, num_items_in_batch=1, skip_logits=True)
        tokens = torch.full_like(output.loss, batch.target_tokens)
        sums += torch.stack([output.loss, output.negative_log_likelihood, tokens])
    model.train()
    loss, nll, tokens = sum_over_processes(accelerator, sums).tolist()
    return loss / tokens, nll / tokens
