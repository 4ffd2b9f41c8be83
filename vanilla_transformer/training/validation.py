# SPDX-License-Identifier: Apache-2.0
"""Validation: likelihood of all pairs, and BLEU by really decoding; every process does its share."""

import math
from dataclasses import dataclass

import torch
from accelerate.utils import gather_object

from vanilla_transformer.evaluation.translate import translate_lines
from vanilla_transformer.evaluation.translation_quality import score_translations
from vanilla_transformer.training.preparation import Run


@dataclass(frozen=True)
class Validation:
    """Results on the validation corpus.

    Args:
        loss: smoothed, mean over target tokens, in nats.
        perplexity: exp of the unsmoothed negative log-likelihood per target token (of the run's tokenizer).
        bleu: sacreBLEU of the first `validation_sentences`.
        is_best: whether this BLEU is the run's best so far; the model is then in `output_dir/best`.
        examples: a few (source, translation, reference).
    """

    loss: float
    perplexity: float
    bleu: float
    is_best: bool
    examples: list[tuple[str, str, str]]


def validate(run: Run) -> Validation:
    """Score the model on the validation corpus; every process gets the result of all."""
    loss, likelihood = _likelihood(run)
    sentences = run.validation.text[: run.config.training.validation_sentences]
    sources, references = sentences["source"], sentences["target"]
    hypotheses = _translate(run, sources)
    bleu = score_translations(hypotheses, references)["bleu"]
    is_best = bleu > run.progress.best_bleu
    if is_best:
        run.progress.best_bleu = bleu
        if run.accelerator.is_main_process:
            run.accelerator.unwrap_model(run.model).save_pretrained(run.output_dir / "best")
            run.tokenizer.save_pretrained(run.output_dir / "best")
    return Validation(
        loss=loss,
        perplexity=math.exp(min(likelihood, 700)),
        bleu=bleu,
        is_best=is_best,
        examples=list(zip(sources[:3], hypotheses[:3], references[:3], strict=True)),
    )


@torch.no_grad()
def _likelihood(run: Run) -> tuple[float, float]:
    """Mean smoothed loss and mean unsmoothed negative log-likelihood per target token, over all processes."""
    model, device = run.accelerator.unwrap_model(run.model), run.accelerator.device
    model.eval()
    sums = torch.zeros(3, dtype=torch.float64)  # loss, negative log-likelihood, target tokens
    for batch in run.validation_batches:
        batch = {name: tensor.to(device) for name, tensor in batch.items()}
        with run.accelerator.autocast():
            output = model(**batch, num_items_in_batch=1)
        tokens = (batch["labels"] != -100).sum()
        sums += torch.stack([output.loss, output.negative_log_likelihood, tokens]).double().cpu()
    model.train()
    loss, likelihood, tokens = run.accelerator.reduce(sums.float().to(device), reduction="sum").tolist()
    return loss / tokens, likelihood / tokens


def _translate(run: Run, sources: list[str]) -> list[str]:
    """Translations in the order of `sources`, each made by one process."""
    processes = run.accelerator.num_processes
    translations = translate_lines(
        run.accelerator.unwrap_model(run.model),
        run.tokenizer,
        sources[run.accelerator.process_index :: processes],
        max_batch_tokens=run.config.generation.batch_tokens,
        num_beams=run.config.training.validation_beams,
    )
    mine = [(run.accelerator.process_index + i * processes, best[0].text) for i, best in enumerate(translations)]
    return [text for _, text in sorted(gather_object(mine))]
