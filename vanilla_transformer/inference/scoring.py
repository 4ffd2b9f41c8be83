# SPDX-License-Identifier: Apache-2.0
"""Scores of given translations: those that n-best lists would give them."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from vanilla_transformer.decoder import Decoder
from vanilla_transformer.generation import length_normalizer
from vanilla_transformer.inference.forced_decoding import token_fields, token_log_probs
from vanilla_transformer.inference.line_options import resolved
from vanilla_transformer.inference.native.forks import compute_after_fork
from vanilla_transformer.inference.native.parallel_batches import parallel_batches
from vanilla_transformer.inference.translate import (
    Translation,
    batches_by_length,
    check_at_least_one,
    encode_lines,
    evaluation_mode,
    length_penalty_rule,
    naming_lines,
    number_at_once,
)
from vanilla_transformer.language_tags import tag_options
from vanilla_transformer.seq2seq_base import BaseForConditionalGeneration


def score_lines(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sources: Sequence[str],
    targets: Sequence[str],
    *,
    decoder: Decoder,
    max_batch_tokens: int,
    max_length: int | None = None,
    alpha: float | None = None,
    tag: str | None = None,
    target_language: str | None = None,
    best_log_probs: bool = False,
    on_progress: Callable[[int, int], object] | None = None,
    first_line: int = 1,
) -> list[Translation]:
    """The score of each target, as `translate_lines` gives it to its own translations, and that of each token.

    A target's tokens are those of the tokenizer: a translation that was generated from other pieces of the same words
    has another score. A tag that targets begin with has log-probability 0, because the search forces it.

    Args:
        max_batch_tokens: tokens of both sides of all batches that are computed at once, padding included.
        max_length: the longest line of either side that is accepted, in tokens; `None`: any.
        alpha: of the paper's length penalty, 0: the sum of the log-probabilities; `None`: the model's own penalty.
        best_log_probs: also return the log-probability of the most probable token at each place.
        decoder, tag, target_language, on_progress, first_line: as for `translate_lines`.

    Returns:
        Of an empty source, which is not decoded, no tokens and the score 0.

    Raises:
        ValueError: a number below 1; a line that is no string, or longer than `max_length`; a target of an empty
            source; and as `model.generate`.
    """
    check_at_least_one(max_batch_tokens=max_batch_tokens, max_length=max_length)
    before, options = tag_options(tokenizer, model.generation_config, tag, target_language)
    forced = resolved(model, options, "forced_bos_token_id")
    places, encoded = encode_lines(tokenizer, sources, first_line, max_length, before)
    for i in sorted({i for i, target in enumerate(targets) if target.strip()} - set(places)):
        raise ValueError(f"line {i + first_line} has a target, but its source is empty: remove both, or add the source")
    results = [Translation("", 0.0, (), (), () if best_log_probs else None)] * len(sources)
    if not encoded:
        return results
    written = _encode_targets(tokenizer, targets, places, first_line, max_length)
    written = [ids if forced is None else [forced, *ids] for ids in written]
    is_ours = isinstance(model, BaseForConditionalGeneration)
    rule = length_penalty_rule(model, {"alpha": alpha}) if is_ours else "transformers"
    normalizer: Any = length_normalizer(rule, vars(model.generation_config), alpha, None)
    at_once = number_at_once(decoder, len(encoded))
    sizes = [len(source) + len(target) for source, target in zip(encoded, written, strict=True)]
    batches = batches_by_length(sizes, [0] * len(sizes), max_batch_tokens // at_once, -(-len(sizes) // at_once))

    def score(batch: list[int]) -> list[Translation]:
        with naming_lines([places[i] + first_line for i in batch]):
            inputs = tokenizer.pad({"input_ids": [encoded[i] for i in batch]}, return_tensors="pt").to(model.device)
            rows = [torch.tensor(written[i]) for i in batch]
            ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(model.device)  # (batch, target_length)
            lengths = torch.tensor([len(row) for row in rows], device=model.device)
            found = token_log_probs(model, inputs, decoder, options, ids, lengths, best_log_probs)
            scores = (found[0].sum(dim=1) / normalizer(lengths.double())).tolist()
            fields = token_fields(tokenizer, ids, lengths, found)
            texts = [targets[places[i]] for i in batch]
            return [Translation(*each, **own) for *each, own in zip(texts, scores, fields, strict=True)]

    done = len(sources) - len(encoded)
    compute_after_fork()
    with evaluation_mode(model):
        for batch, scored in zip(batches, parallel_batches(score, batches, at_once), strict=True):
            for i, translation in zip(batch, scored, strict=True):
                results[places[i]] = translation
            done += len(batch)
            if on_progress is not None:
                on_progress(done, len(sources))
    return results


def _encode_targets(
    tokenizer: PreTrainedTokenizerBase, targets: Sequence[str], places: list[int], first_line: int, limit: int | None
) -> list[list[int]]:
    """The tokens of the targets at these places, with the EOS token."""
    encoded: Any = tokenizer(text_target=[targets[place] for place in places])["input_ids"]
    for place, ids in zip(places, encoded, strict=True):
        if limit is not None and len(ids) > limit:
            raise ValueError(
                f"the target of line {place + first_line} has {len(ids):,} tokens, more than the limit of {limit:,}; "
                "raise max_length (--max-tokens)"
            )
    return encoded
