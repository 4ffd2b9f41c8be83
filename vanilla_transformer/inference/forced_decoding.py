# SPDX-License-Identifier: Apache-2.0
"""Log-probabilities of given targets, by the decoder that searches: in its precision, and of ensembles too."""

from collections.abc import Sequence
from typing import Any

import torch

from vanilla_transformer.data.tokenizer_class import TARGET_TOKENIZER
from vanilla_transformer.decoder import Decoder, SupportsSelect
from vanilla_transformer.ensemble import log_softmax
from vanilla_transformer.generation import DecodingError, read_prompt

OF_THE_SEARCH = ("num_beams", "num_return_sequences", "alpha", "length_penalty", "rule", "early_stopping")
OF_THE_SEARCH += ("coverage_penalty", "logits_processor", "select_candidates")


def real_tokens(tokens: torch.Tensor, eos_token_ids: torch.Tensor, pad_token_id: int) -> torch.Tensor:
    """True for tokens before the padding of each target: `(rows, length)` → bool of that shape.

    A target ends with its EOS token, or at its maximum length; then there is padding.

    Args:
        eos_token_ids: `(eos_tokens)`.
    """
    is_end = (tokens[..., None] == eos_token_ids).any(dim=-1)
    before_padding = (tokens != pad_token_id).flip(1).cumsum(dim=1).flip(1) > 0
    return (is_end.cumsum(dim=1) - is_end.int() == 0) & (is_end.any(dim=1, keepdim=True) | before_padding)


def encode_targets(
    tokenizer: Any, targets: Sequence[str], places: list[int], first_line: int, limit: int | None, forced: int | None
) -> list[list[int]]:
    """The tokens of the targets at these places, after the one that the search forces.

    Raises:
        ValueError: a target that is no string, one at another place, or one of more tokens than `limit`.
    """
    has_source = set(places)
    for i, target in enumerate(targets):
        if not isinstance(target, str):
            raise ValueError(f"the target of line {i + first_line} must be a string, not {type(target).__name__}")
        if target.strip() and i not in has_source:
            raise ValueError(f"line {i + first_line} has a target, but an empty source: remove both, or add the source")
    encoded = tokenizer(text_target=[targets[i] for i in places])["input_ids"] if places else []
    for i, ids in zip(places, encoded, strict=True):
        if limit is not None and len(ids) > limit:
            raise ValueError(
                f"the target of line {i + first_line} has {len(ids):,} tokens, more than the limit of {limit:,}; raise "
                "max_length (--max-tokens)"
            )
    return [ids if forced is None else [forced, *ids] for ids in encoded]


def pad_targets(targets: list[list[int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """`(batch, target_length)`, and the lengths `(batch)`."""
    lengths = torch.tensor([len(ids) for ids in targets], device=device)
    padded = torch.nn.utils.rnn.pad_sequence([torch.tensor(ids) for ids in targets], batch_first=True)
    return padded.to(device), lengths


def token_fields(
    tokenizer: Any, targets: torch.Tensor, lengths: torch.Tensor, log_probs: torch.Tensor
) -> list[dict[str, Any]]:
    """The fields of each `Translation` that `token_log_probs` has computed; arguments as there."""
    tokenizer = getattr(tokenizer, TARGET_TOKENIZER, None) or tokenizer
    fields = []
    for row, length in enumerate(lengths.tolist()):
        values = [tuple(part[row, :length].tolist()) for part in log_probs]
        tokens = tuple(tokenizer.convert_ids_to_tokens(targets[row, :length].tolist()))
        fields.append(dict(zip(("tokens", "log_probs", "best_log_probs"), [tokens, *values], strict=False)))
    return fields


@torch.inference_mode()
def token_log_probs(
    model: Any,
    inputs: Any,
    decoder: Decoder,
    options: dict[str, Any],
    targets: torch.Tensor,
    lengths: torch.Tensor,
    count: int,
) -> torch.Tensor:
    """Log-probability of each token of the targets, after the processors of logits that `options` ask for.

    Args:
        inputs: `input_ids` and `attention_mask`, `(batch, source_length)`.
        options: the search's; options that score no token have no effect.
        targets: `(batch, target_length)`, without the prompt, padded.
        lengths: target tokens of each row, `(batch)`.
        count: 2: also return that of the most probable token at each place; 1: not.

    Returns:
        `(count, batch, target_length)` in float64; 0 beyond the lengths.

    Raises:
        DecodingError: logits that are NaN.
    """
    own: dict[str, Any] = {"decoder": decoder, "encoder_outputs": decoder.encode(**inputs), "num_beams": 1}
    own |= {"targets": targets, "lengths": lengths, "count": count, "custom_generate": _force_targets}
    return model.generate(**inputs, **{name: options[name] for name in options if name not in OF_THE_SEARCH} | own)


def _force_targets(
    model: Any,
    input_ids: torch.Tensor,
    logits_processor: Any,
    stopping_criteria: Any,
    generation_config: Any,
    *,
    decoder: Decoder,
    targets: torch.Tensor,
    lengths: torch.Tensor,
    count: int,
    **model_kwargs: Any,
) -> torch.Tensor:
    """In place of a search, for `model.generate(…, custom_generate=…)`, which makes the processors and the prompt."""
    source = model_kwargs["encoder_outputs"], model_kwargs["attention_mask"]
    state = decoder.begin(*source, input_ids.shape[1] + targets.shape[1], 1)
    read_prompt(state, input_ids)
    # Processors expect all sentences at every step; see `search._capabilities`.
    selectable = state if isinstance(state, SupportsSelect) and not len(logits_processor) else None
    found = torch.zeros(count, *targets.shape, dtype=torch.float64, device=targets.device)
    rows = torch.arange(len(targets), device=targets.device)  # each remaining sentence's row in the whole batch
    so_far = input_ids
    for step in range(int(lengths.max())):
        is_kept = lengths[rows] > step
        if selectable is not None and not bool(is_kept.all()):
            rows, so_far = rows[is_kept], so_far[is_kept]
            selectable.select(is_kept.nonzero()[:, 0])
        log_probs = log_softmax(state(so_far[:, -1:]))  # (sentences, vocab_size)
        log_probs = logits_processor(so_far, log_probs) if len(logits_processor) else log_probs
        tokens = targets[rows, step, None]
        found[0, rows, step] = log_probs.gather(1, tokens)[:, 0].double()
        if count == 2:
            found[1, rows, step] = log_probs.amax(dim=1).double()
        so_far = torch.cat([so_far, tokens], dim=1)
    found.masked_fill_(torch.arange(targets.shape[1], device=targets.device) >= lengths[:, None], 0.0)
    if bool((is_nan := found.isnan().any(dim=2).any(dim=0)).any()):
        raise DecodingError("the logits are NaN", int(is_nan.nonzero()[0]))
    return found
