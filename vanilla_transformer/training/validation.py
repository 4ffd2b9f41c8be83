# SPDX-License-Identifier: Apache-2.0
"""Validation: likelihood of all pairs, and BLEU by really decoding; every process does its share."""

import math
from dataclasses import dataclass

import torch

from vanilla_transformer.evaluation.translation_quality import score_translations
from vanilla_transformer.inference.translate import translate_on_all_processes
from vanilla_transformer.loss import IGNORED, smoothed_cross_entropy
from vanilla_transformer.seq2seq_base import BaseForConditionalGeneration
from vanilla_transformer.training.checkpoint import replaced_whole
from vanilla_transformer.training.preparation import Run

EXAMPLES = 3  # translations that are shown


@dataclass(frozen=True)
class Validation:
    """Results on the validation corpus.

    Args:
        loss: smoothed, mean over target tokens, in nats.
        perplexity: exp of the unsmoothed negative log-likelihood per target token (of the run's tokenizer).
        bleu: sacreBLEU of the first `validation_sentences`.
        bleu_signature: sacreBLEU's.
        is_best: whether this BLEU is the run's best so far; the model is then in `output_dir/best`.
        examples: a few (source, translation, reference).
    """

    loss: float
    perplexity: float
    bleu: float
    bleu_signature: str
    is_best: bool
    examples: list[tuple[str, str, str]]


def perplexity(negative_log_likelihood: float) -> float:
    """exp of nats per token; infinite where a float cannot hold it."""
    return math.exp(negative_log_likelihood) if negative_log_likelihood < 700 else math.inf


def validate(run: Run) -> Validation:
    """Score the model on the validation corpus; every process gets the result of all."""
    assert run.corpora.validation is not None
    model = run.whole_model()
    loss, likelihood = _likelihood(run, model)
    sentences = run.corpora.validation[: run.config.training.validation_sentences]
    sources, references = sentences["source"], sentences["target"]
    translations = translate_on_all_processes(
        model,
        run.tokenizer,
        sources,
        max_batch_tokens=run.config.generation.batch_tokens,
        num_beams=run.config.training.validation_beams,
    )
    hypotheses = [best[0].text for best in translations]
    score = score_translations(hypotheses, references)
    is_best = score["bleu"] > run.progress.best_bleu
    if is_best:
        run.progress.best_bleu = score["bleu"]
        if run.accelerator.is_main_process:
            with replaced_whole(run.output_dir / "best") as folder:
                model.save_pretrained(folder)
                run.tokenizer.save_pretrained(folder)
    return Validation(
        loss=loss,
        perplexity=perplexity(likelihood),
        bleu=score["bleu"],
        bleu_signature=score["bleu_signature"],
        is_best=is_best,
        examples=list(zip(sources[:EXAMPLES], hypotheses[:EXAMPLES], references[:EXAMPLES], strict=True)),
    )


@torch.no_grad()
def _likelihood(run: Run, model: BaseForConditionalGeneration) -> tuple[float, float]:
    """Mean smoothed loss and mean unsmoothed negative log-likelihood per target token, over all processes."""
    assert run.validation_batches is not None
    device = run.accelerator.device
    model.eval()
    sums = torch.zeros(3)  # loss, negative log-likelihood, target tokens
    for batch in run.validation_batches:
        batch = {name: tensor.to(device) for name, tensor in batch.items()}
        labels = batch.pop("labels")
        with run.accelerator.autocast():
            # Not through the whole model, which would return, outside of training, the logits of all tokens too.
            decoded = model.model(**batch, decoder_input_ids=model.prepare_decoder_input_ids_from_labels(labels))
            loss, likelihood = smoothed_cross_entropy(
                decoded.last_hidden_state, model.lm_head.weight, labels, model.config.label_smoothing, 1
            )
        sums += torch.stack([loss, likelihood, (labels != IGNORED).sum()]).cpu()
    model.train()
    loss, likelihood, tokens = run.sum_over_processes(sums).tolist()
    return loss / tokens, likelihood / tokens
