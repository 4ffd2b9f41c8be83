# SPDX-License-Identifier: Apache-2.0
"""Options of `generate` with a value for each line follow their line, though row i of a batch is not line i."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from vanilla_transformer.generation import beam_search
from vanilla_transformer.seq2seq_base import BaseForConditionalGeneration

PROMPT, PROMPT_MASK = "decoder_input_ids", "decoder_attention_mask"
START = "decoder_start_token_id"  # one for all, or a list of one for each line
PREFIX_FUNCTION = "prefix_allowed_tokens_fn"
PREFIXES, TARGETS = "prefixes", "targets"  # options of `translate_lines`, texts

SET_HERE = "translate_lines sets it"
DEPENDS_ON_ROWS = (
    "its rows would be those of other lines, which are sorted by length; call model.generate on a batch of your own"
)
REFUSED = dict.fromkeys(
    ("inputs", "input_ids", "attention_mask", "return_dict_in_generate", "output_scores"), SET_HERE
) | dict.fromkeys(
    (
        *("inputs_embeds", "encoder_outputs", "decoder_inputs_embeds", "cache", "past_key_values", "labels"),
        *("logits_processor", "stopping_criteria", "streamer", "select_candidates"),
        *("negative_prompt_ids", "negative_prompt_attention_mask"),
    ),
    DEPENDS_ON_ROWS,
)


def check_options(model: PreTrainedModel, options: dict[str, Any]) -> None:
    """Refuse options that would apply to other lines than intended.

    Raises:
        ValueError: an option of `REFUSED`; any other tensor, whose rows may be lines; a mask without a prompt;
            start tokens in a generation config, which has no lines; `custom_generate` that asks a model of this
            package for another decoding.
    """
    if isinstance(model, BaseForConditionalGeneration) and options.get("custom_generate") not in (None, beam_search):
        raise ValueError("custom_generate: models of this package are translated by beam_search; call model.generate")
    for name, value in options.items():
        if value is None:
            continue
        if name in REFUSED:
            raise ValueError(f"{name} cannot be given here: {REFUSED[name]}")
        if isinstance(value, torch.Tensor) and name not in (PROMPT, PROMPT_MASK, START, "eos_token_id"):
            raise ValueError(f"{name} cannot be given here: {DEPENDS_ON_ROWS}")
    if options.get(PROMPT_MASK) is not None and options.get(PROMPT) is None:
        raise ValueError(f"{PROMPT_MASK} needs {PROMPT}, whose padding it marks")
    for config in (options.get("generation_config"), model.generation_config):
        if config is not None and not isinstance(config.decoder_start_token_id, int | None):
            raise ValueError(f"{START} of a generation config must be one token; give the list as an option instead")


def check_counts(options: dict[str, Any], lines: int) -> None:
    """Raises ValueError where an option does not have one row for each of the `lines` lines."""
    for name, rows in _rows(options).items():
        if len(rows) != lines:
            raise ValueError(f"{name} has {len(rows):,} rows for {lines:,} lines; give it one for each line")


def options_of(options: dict[str, Any], places: Sequence[int]) -> dict[str, Any]:
    """The options for the lines at these places, in this order.

    Raises:
        ValueError: an option with fewer rows than there are lines.
    """
    chosen = dict(options)
    for name, rows in _rows(options).items():
        if places and max(places) >= len(rows):
            raise ValueError(f"{name} has {len(rows):,} rows, and there are more lines; give it one for each line")
        chosen[name] = rows[list(places)] if isinstance(rows, torch.Tensor) else [rows[i] for i in places]
    if (function := options.get(PREFIX_FUNCTION)) is not None:
        chosen[PREFIX_FUNCTION] = lambda row, target: function(places[row], target)
    return chosen


def prompts_of(
    model: PreTrainedModel, options: dict[str, Any], lines: int, first_line: int = 1
) -> list[list[int]] | None:
    """The prompt of each line's target, without padding, as `generate` would make it for the line alone.

    Args:
        options: as for `translate_lines`, with `lines` rows.
        first_line: number of the first line, for error messages.

    Returns:
        The tokens for each line, beginning with `decoder_start_token_id`; `None`: the options have no prompts.

    Raises:
        ValueError: rows that are no tensor `(lines, length)`; a mask of another shape, or one that hides anything but
            padding on the left.
    """
    rows, mask = options.get(PROMPT), options.get(PROMPT_MASK)
    starts = _rows(options).get(START)
    if rows is None:
        return None if starts is None else [[int(start)] for start in starts]
    if starts is None:
        start = resolved(model, options, START)
        starts = [resolved(model, options, "bos_token_id") if start is None else start] * lines
    if not isinstance(rows, torch.Tensor) or rows.dim() != 2 or rows.shape[1] == 0:
        raise ValueError(f"{PROMPT} must be a tensor (lines, length) with at least one token in each row")
    mask = torch.ones_like(rows) if mask is None else mask
    if not isinstance(mask, torch.Tensor) or mask.shape != rows.shape:
        raise ValueError(f"{PROMPT_MASK} must be a tensor of the shape of {PROMPT}, {tuple(rows.shape)}")
    prompts = []
    for number, (tokens, is_real, start) in enumerate(
        zip(rows.tolist(), mask.bool().tolist(), starts, strict=True), first_line
    ):
        if not is_real[-1] or is_real != sorted(is_real):
            raise ValueError(f"{PROMPT_MASK}, line {number}: it may hide padding on the left alone")
        prompt = tokens[is_real.index(True) :]
        prompts.append(prompt if start in (None, prompt[0]) else [int(start), *prompt])
    return prompts


def _rows(options: dict[str, Any]) -> dict[str, Any]:
    """The options that have a row for each line."""
    names = (PROMPT, PROMPT_MASK, PREFIXES, TARGETS)
    rows = {name: options[name] for name in names if options.get(name) is not None}
    start = options.get(START)
    if isinstance(start, list | tuple) or (isinstance(start, torch.Tensor) and start.dim() > 0):
        rows[START] = start
    return rows


def resolved(model: PreTrainedModel, options: dict[str, Any], name: str) -> Any:
    """An option as `generate` resolves it: the keyword, else the generation config given, else the model's own."""
    configs = (options.get("generation_config"), model.generation_config)
    values = [options.get(name), *(getattr(config, name, None) for config in configs if config is not None)]
    return next((value for value in values if value is not None), None)
