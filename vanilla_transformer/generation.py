# SPDX-License-Identifier: Apache-2.0
"""Section 6.1 of the paper: beam search with the length penalty of Wu et al. (2016, arXiv:1609.08144).

A model's folder has this file as custom_generate/generate.py, where transformers looks for `generate`.
"""

import torch
from torch import nn
from transformers.generation.utils import GenerateBeamEncoderDecoderOutput

BEAMS, ALPHA = 4, 0.6  # "chosen after experimentation on the development set"


def generate(inputs: torch.Tensor | None = None, *, model, **kwargs):
    """The paper's decoding: `model.generate(…, custom_generate=folder, trust_remote_code=True)` comes here.

    Args:
        inputs, kwargs: as for `model.generate`, and `beam_search`'s own. With no `num_beams`, neither here nor in a
            generation config, there are 4 as in the paper.
    """
    config = kwargs.get("generation_config") or model.generation_config
    if "num_beams" not in kwargs and config.num_beams is None:
        kwargs["num_beams"] = BEAMS
    return type(model).generate(model, inputs, custom_generate=beam_search, **kwargs)


def length_penalty(length: int, alpha: float) -> float:
    """lp(Y) = ((5 + |Y|) / 6)^alpha, by which a log-probability is divided; `length` in tokens, with the last one."""
    return ((5 + length) / 6) ** alpha


@torch.no_grad()
def beam_search(
    model,
    input_ids: torch.Tensor,
    logits_processor,
    stopping_criteria,
    generation_config,
    synced_gpus: bool = False,
    alpha: float = ALPHA,
    **model_kwargs,
) -> torch.Tensor | GenerateBeamEncoderDecoderOutput:
    """The paper's beam search, for `model.generate(…, custom_generate=beam_search, num_beams=4)`.

    It ends for a sentence when nothing unfinished can still become one of the best `num_return_sequences`, so it
    returns what it would at `max_length` ("but terminate early when possible"); with `early_stopping=True` when
    `num_beams` are finished.

    Args:
        model: any model with transformers' `GenerationMixin`.
        input_ids: what the target begins with, `(sentences * num_beams, prompt_length)`.
        alpha: of the length penalty; 0: plain sums of log-probabilities.

    Returns:
        `(sentences * num_return_sequences, target_length)`, best first for each sentence; with
        `return_dict_in_generate`, with `sequences_scores`: log-probability / lp(length).

    Raises:
        ValueError: sampling, or outputs other than the scores, which this search does not offer.
    """
    _check(generation_config, synced_gpus)
    beams, kept = generation_config.num_beams, generation_config.num_return_sequences
    sentences, prompt = input_ids.shape[0] // beams, input_ids.shape[1]
    pad, ends = generation_config._pad_token_tensor, generation_config._eos_token_tensor
    candidates = (1 + (0 if ends is None else len(ends))) * beams  # so that `beams` of them go on
    live = input_ids.view(sentences, beams, prompt)
    live_scores = torch.zeros(sentences, beams, device=input_ids.device)
    live_scores[:, 1:] = -torch.inf  # the beams of a sentence begin alike: only the first counts
    filler = 0 if pad is None else int(pad)
    finished = live.new_full((sentences, beams, generation_config.max_length), filler)
    finished_scores = torch.full_like(live_scores, -torch.inf)
    finished_lengths = live.new_full((sentences, beams), prompt)
    is_done = torch.zeros(sentences, 1, dtype=torch.bool, device=input_ids.device)
    new_tokens = None  # how many of the target the model has not read; None: all, in the first step

    while not is_done.all():
        flat = live.flatten(0, 1)  # (sentences * beams, length)
        inputs = model.prepare_inputs_for_generation(
            flat, next_sequence_length=new_tokens, is_first_iteration=new_tokens is None, **model_kwargs
        )
        output = model(**inputs, return_dict=True)
        model_kwargs = model._update_model_kwargs_for_generation(
            output, model_kwargs, is_encoder_decoder=model.config.is_encoder_decoder
        )
        new_tokens = 1 if model_kwargs.get("use_cache") else None
        log_probabilities = logits_processor(flat, output.logits[:, -1].float().log_softmax(dim=-1))
        totals = live_scores[:, :, None] + log_probabilities.view(sentences, beams, -1)  # (sentences, beams, vocab)

        scores, index = totals.flatten(1).topk(min(candidates, totals[0].numel()))  # (sentences, candidates)
        beam, token = index // totals.shape[2], index % totals.shape[2]
        extended = torch.cat([_take(live, beam), token[..., None]], dim=-1)  # (sentences, candidates, length + 1)
        length = extended.shape[2]
        is_end = stopping_criteria(extended.flatten(0, 1), log_probabilities).view_as(scores)

        # Finished: an end among the best `beams` candidates, if it is better than what is there.
        may_enter = is_end & (torch.arange(scores.shape[1], device=scores.device) < beams) & ~is_done
        penalised = (scores / length_penalty(length - prompt, alpha)).masked_fill(~may_enter, -torch.inf)
        finished_scores, best = torch.cat([finished_scores, penalised], dim=1).topk(beams)
        padded = nn.functional.pad(extended, (0, generation_config.max_length - length), value=filler)
        finished = _take(torch.cat([finished, padded], dim=1), best)
        finished_lengths = torch.cat([finished_lengths, torch.full_like(token, length)], dim=1).gather(1, best)

        # Live: the best that go on.
        live_scores, best = scores.masked_fill(is_end, -torch.inf).topk(beams)
        live = _take(extended, best)
        if model_kwargs.get("cache") is not None:
            offset = torch.arange(sentences, device=beam.device)[:, None] * beams
            model_kwargs["cache"].reorder_cache((beam.gather(1, best) + offset).flatten())
        longest = generation_config.max_length - prompt
        # A sum of log-probabilities only falls, so this is the most that a live hypothesis can still reach.
        reach = live_scores[:, :1] / max(length_penalty(n, alpha) for n in (length - prompt + 1, longest))
        is_done |= reach <= finished_scores[:, kept - 1 : kept]
        if generation_config.early_stopping is True:
            is_done |= finished_scores[:, -1:].isfinite()

    sequences = finished[:, :kept, : finished_lengths[:, :kept].max()].flatten(0, 1)
    if not generation_config.return_dict_in_generate:
        return sequences
    return GenerateBeamEncoderDecoderOutput(
        sequences=sequences,  # pyright: ignore[reportArgumentType] -- transformers names a type that no tensor has
        sequences_scores=finished_scores[:, :kept].flatten(),  # pyright: ignore[reportArgumentType] -- likewise
    )


def _take(hypotheses: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """`(sentences, hypotheses, length)` at `index` `(sentences, chosen)` → `(sentences, chosen, length)`."""
    return hypotheses.gather(1, index[..., None].expand(-1, -1, hypotheses.shape[2]))


def _check(generation_config, synced_gpus: bool) -> None:
    if generation_config.do_sample:
        raise ValueError("do_sample=True: the paper's decoding is a beam search and draws nothing; use do_sample=False")
    if synced_gpus:
        raise ValueError("synced_gpus=True is not offered by the paper's decoding; leave custom_generate out")
    for name in ("output_logits", "output_attentions", "output_hidden_states"):
        if getattr(generation_config, name):
            raise ValueError(f"{name}=True is not offered by the paper's decoding; leave custom_generate out")
