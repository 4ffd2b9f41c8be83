# SPDX-License-Identifier: Apache-2.0
"""One batch of sources in, translations with their scores out."""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import LogitsProcessorList, PreTrainedModel, PreTrainedTokenizerBase

from vanilla_transformer.data.alignment import Link
from vanilla_transformer.decoder import Decoder
from vanilla_transformer.generation import beam_search, length_normalizer
from vanilla_transformer.inference.forced_decoding import pad_targets, real_tokens, token_fields, token_log_probs
from vanilla_transformer.inference.line_options import PROMPT, options_of, resolved
from vanilla_transformer.inference.sampling import GumbelSampler
from vanilla_transformer.seq2seq_base import BaseForConditionalGeneration


@dataclass(frozen=True)
class Translation:
    """One translation; `score` is its log-probability over the paper's length penalty, `None` of greedy search.

    Models of other packages, and most that are imported, have log-probability / length^`length_penalty`.

    Args:
        tokens: entries of the vocabulary, with its marks of word starts and the EOS token; only with `log_probs`.
        log_probs: log-probability of each token.
        best_log_probs: that of the most probable token in its place.
    `alignment` has the links between words of the line and of the text, `None` where they were not asked for.
    """

    text: str
    score: float | None = None
    tokens: tuple[str, ...] = ()
    log_probs: tuple[float, ...] = ()
    best_log_probs: tuple[float, ...] = ()
    alignment: list[Link] | None = None

    @property
    def source_positions(self) -> list[list[int]] | None:
        """For each word of the text, the positions of the line's words that it is aligned with."""
        if self.alignment is None:
            return None
        return [[s for s, t in self.alignment if t == word] for word in range(len(self.text.split()))]


def translate_batch(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    ids: list[list[int]],
    decoder: Decoder,
    options: dict[str, Any],
    sampler: GumbelSampler | None,
    given: list[list[int]] | None,
    num_log_probs: int,
) -> list[list[Translation]]:
    """The translations of each source, best first.

    Args:
        ids: tokens of each source.
        options: for `generate`, with a row for each source; and `num_return_sequences`.
        sampler: makes the greedy search sample.
        given: tokens of each target, to be scored in place of a search; the texts are then left out.
        num_log_probs: 1: each token's log-probability; 2: and that of the most probable token in its place; 0: neither.
    """
    inputs = tokenizer.pad({"input_ids": ids}, return_tensors="pt").to(model.device)  # (batch, source_length)
    if given is not None:
        return _score_batch(model, tokenizer, inputs, decoder, options, given, num_log_probs)
    if sampler is not None:
        options["logits_processor"] = LogitsProcessorList([sampler])
    output = generate(model, inputs, decoder, options)
    texts = tokenizer.batch_decode(output.sequences, skip_special_tokens=True)
    scores = output.get("sequences_scores")  # none without beams
    scores = [None] * len(texts) if scores is None else scores.tolist()
    eos, pad = (resolved(model, options, f"{name}_token_id") for name in ("eos", "pad"))
    eos = torch.tensor([] if eos is None else eos, dtype=torch.long, device=model.device).view(-1)
    pad = -1 if pad is None else pad
    if sampler is not None:
        scores = sampler.scores(output.sequences, eos, pad)
    flat = [Translation(text, score) for text, score in zip(texts, scores, strict=True)]
    count = options["num_return_sequences"]
    if num_log_probs:
        targets = output.sequences[:, options[PROMPT].shape[1] if PROMPT in options else 1 :]
        lengths = real_tokens(targets, eos, pad).sum(dim=1)
        rows = [i for i in range(len(ids)) for _ in range(count)]
        repeated = {name: tensor[rows] for name, tensor in inputs.items()}
        found = token_log_probs(model, repeated, decoder, options_of(options, rows), targets, lengths, num_log_probs)
        fields = token_fields(tokenizer, targets, lengths, found)
        flat = [replace(translation, **own) for translation, own in zip(flat, fields, strict=True)]
    groups = [flat[i : i + count] for i in range(0, len(flat), count)]
    # A score of -inf: fewer targets are possible than were asked for.
    return [[translation for translation in group if translation.score != -math.inf] for group in groups]


def _score_batch(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    inputs: Any,
    decoder: Decoder,
    options: dict[str, Any],
    given: list[list[int]],
    num_log_probs: int,
) -> list[list[Translation]]:
    targets, lengths = pad_targets(given, model.device)
    found = token_log_probs(model, inputs, decoder, options, targets, lengths, num_log_probs)
    is_ours = isinstance(model, BaseForConditionalGeneration)
    rule: Any = length_penalty_rule(model, options) if is_ours else "transformers"
    penalties = options.get("alpha"), options.get("length_penalty")
    normalizer = length_normalizer(rule, vars(options.get("generation_config") or model.generation_config), *penalties)
    scores = (found[0].sum(dim=1) / normalizer(lengths.double())).tolist()
    fields = token_fields(tokenizer, targets, lengths, found)
    return [[Translation("", score, **own)] for score, own in zip(scores, fields, strict=True)]


def length_penalty_rule(model: Any, options: dict[str, Any]) -> str:
    """The rule of `beam_search`: "gnmt", the paper's, or "transformers", length^`length_penalty`.

    The latter is for a generation config that has `length_penalty` alone, as one imported from a toolkit with this
    rule; ours have `alpha` too. An `alpha` among the options asks for the paper's.
    """
    alpha, power = (resolved(model, options, name) for name in ("alpha", "length_penalty"))
    return "transformers" if alpha is None and power is not None else "gnmt"


@torch.inference_mode()
def generate(model: Any, inputs: Any, decoder: Decoder, options: dict[str, Any]) -> Any:
    """`model.generate` for a batch of sources: the paper's decoding by `decoder`, for models of this package.

    Args:
        inputs: `input_ids` and `attention_mask`, `(batch, source_length)`.
    """
    is_ours = isinstance(model, BaseForConditionalGeneration)
    # transformers returns the scores of beams only beside the scores of every step.
    needs_step_scores = not is_ours and (resolved(model, options, "num_beams") or 1) > 1
    own: dict[str, Any] = {"return_dict_in_generate": True, "output_scores": needs_step_scores}
    if is_ours:
        own |= {"custom_generate": beam_search, "decoder": decoder, "encoder_outputs": decoder.encode(**inputs)}
        options = {"rule": length_penalty_rule(model, options)} | options
    return model.generate(**inputs, **options | own)  # pyright: ignore[reportAttributeAccessIssue] -- it binds the mix-in to its own protocol
