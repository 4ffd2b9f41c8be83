# SPDX-License-Identifier: Apache-2.0
"""Log-probabilities of given targets, by the decoder that searches: in its precision, and of ensembles too."""

from typing import Any

import torch

from vanilla_transformer.data.tokenizer_class import TARGET_TOKENIZER
from vanilla_transformer.decoder import Decoder, SupportsSelect
from vanilla_transformer.ensemble import log_softmax
from vanilla_transformer.generation import DecodingError, read_prompt

OF_THE_SEARCH = ("num_beams", "num_return_sequences", "alpha", "length_penalty", "rule", "early_stopping")
OF_THE_SEARCH += ("coverage_penalty", "logits_processor")


def real_tokens(tokens: torch.Tensor, eos_token_ids: torch.Tensor, pad_token_id: int) -> torch.Tensor:
    """Which tokens of targets are not the padding after them: `(rows, length)` → bool of that shape.

    A target ends with its EOS token, or at its maximum length; then there is padding.

    Args:
        eos_token_ids: `(eos_tokens)`.
    """
    is_end = (tokens[..., None] == eos_token_ids).any(dim=-1)
    before_padding = (tokens != pad_token_id).flip(1).cumsum(dim=1).flip(1) > 0
    return (is_end.cumsum(dim=1) - is_end.int() == 0) & (is_end.any(dim=1, keepdim=True) | before_padding)


def token_fields(
    tokenizer: Any, targets: torch.Tensor, lengths: torch.Tensor, log_probs: torch.Tensor
) -> list[dict[str, tuple]]:
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
    with_best: bool = False,
) -> torch.Tensor:
    """Log-probability of each token of the targets, after the processors of logits that `options` ask for.

    Args:
        inputs: `input_ids` and `attention_mask`, `(batch, source_length)`.
        options: of the search; those that score no token have no effect.
        targets: `(batch, target_length)`, without the prompt, padded.
        lengths: of the targets in tokens, `(batch)`.
        with_best: also return that of the most probable token at each place.

    Returns:
        `(1, batch, target_length)`, or with the best `(2, batch, target_length)`, in float64; 0 beyond the lengths.

    Raises:
        DecodingError: logits that are NaN.
    """
    own: dict[str, Any] = {"decoder": decoder, "encoder_outputs": decoder.encode(**inputs), "num_beams": 1}
    own |= {"targets": targets, "lengths": lengths, "with_best": with_best, "custom_generate": _force_targets}
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
    with_best: bool,
    **model_kwargs: Any,
) -> torch.Tensor:
    """In place of a search, for `model.generate(…, custom_generate=…)`, which makes the processors and the prompt."""
    source = model_kwargs["encoder_outputs"], model_kwargs["attention_mask"]
    state = decoder.begin(*source, input_ids.shape[1] + targets.shape[1], 1)
    read_prompt(state, input_ids)
    # Processors expect all sentences at every step; see `search._capabilities`.
    selectable = state if isinstance(state, SupportsSelect) and not len(logits_processor) else None
    found = torch.zeros(1 + with_best, *targets.shape, dtype=torch.float64, device=targets.device)
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
        if with_best:
            found[1, rows, step] = log_probs.amax(dim=1).double()
        so_far = torch.cat([so_far, tokens], dim=1)
    found.masked_fill_(torch.arange(targets.shape[1], device=targets.device) >= lengths[:, None], 0.0)
    if bool((is_nan := found.isnan().any(dim=2).any(dim=0)).any()):
        raise DecodingError("the logits are NaN", int(is_nan.nonzero()[0]))
    return found
