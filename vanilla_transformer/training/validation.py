# SPDX-License-Identifier: Apache-2.0
"""Validation: the nll of all pairs, and BLEU by decoding; every process does its share."""

import math
from dataclasses import dataclass

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

EXAMPLES = 3  # translations to show


@dataclass(frozen=True)
class Validation:
    """Results on the validation corpus.

    Args:
        loss: smoothed, mean over target tokens, in nats.
        perplexity: exp of the unsmoothed negative log-likelihood per target token (of the run's tokenizer).
        bleu, chrf: sacreBLEU's, of the first `validation_sentences`.
        bleu_signature, chrf_signature: sacreBLEU's.
        is_best: whether this BLEU is the run's best so far; the model is then in `output_dir/best`.
        examples: a few (source, translation, reference).
    """

    loss: float
    perplexity: float
    bleu: float
    bleu_signature: str
    chrf: float
    chrf_signature: str
    is_best: bool
    examples: list[tuple[str, str, str]]


def perplexity(negative_log_likelihood: float) -> float:
    """exp of nats per token; infinite where a float cannot hold it."""
    return math.exp(negative_log_likelihood) if negative_log_likelihood < 700 else math.inf


@torch.compiler.set_stance("force_eager")  # other modes would need other graphs, for few batches
def validate(run: Run) -> Validation:
    """Score the model on the validation corpus, in every process; save the best by BLEU to `output_dir/best`."""
    assert run.corpora.validation is not None
    assert run.validation_batches is not None
    accelerator, progress, model = run.state.accelerator, run.state.progress, run.state.bare_model()
    if is_sharded(model):
        model = unsharded_copy(model, accelerator.device)
    loss, nll = mean_loss(model, run.validation_batches, accelerator)
    sentences = run.corpora.validation[: run.config.training.validation_sentences]
    sources, references = sentences["source"], sentences["target"]
    beams = run.config.training.validation_beams
    options = {"max_batch_tokens": run.config.generation.batch_tokens} | ({} if beams is None else {"num_beams": beams})
    translations = translate_on_all_processes(model, run.tokenizer, sources, **options)
    hypotheses = [best[0].text for best in translations]
    scores = score_translations(hypotheses, references)
    is_best = scores["bleu"] > progress.best_bleu
    if is_best:
        progress.best_bleu = scores["bleu"]
        if accelerator.is_main_process:
            with atomic_folder(run.output_dir / "best") as folder:
                save_weights(model, folder)
                run.tokenizer.save_pretrained(folder)
        wait_for_everyone()
    return Validation(
        loss=loss,
        perplexity=perplexity(nll),
        bleu=scores["bleu"],
        bleu_signature=scores["bleu_signature"],
        chrf=scores["chrf"],
        chrf_signature=scores["chrf_signature"],
        is_best=is_best,
        examples=list(zip(sources[:EXAMPLES], hypotheses[:EXAMPLES], references[:EXAMPLES], strict=True)),
    )


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
