# SPDX-License-Identifier: Apache-2.0
"""Options of `generate` that have a value for each line, when lines are decoded in another order than they come in.

Lines are sorted by length, cut into batches and shared by processes, so that row i of a batch is not line i. An option
with a value for each line follows its line. Options that depend on the rows of a batch
are refused.
"""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

PROMPT, PROMPT_MASK = "decoder_input_ids", "decoder_attention_mask"
START = "decoder_start_token_id"  # one for all, or a list of one for each line
PREFIX_FUNCTION = "prefix_allowed_tokens_fn"

# Set by `translate_lines` itself, from the lines and its own arguments.
SET_HERE = "translate_lines sets it"
# Row i of these is row i of a batch, which only `generate` knows.
KNOWS_ROWS = (
    "its rows would be those of other lines, which are sorted by length; call model.generate on a batch of your own"
)
REFUSED = {
    "inputs": SET_HERE,
    "input_ids": SET_HERE,
    "attention_mask": SET_HERE,
    "return_dict_in_generate": SET_HERE,
    "output_scores": SET_HERE,
    "inputs_embeds": KNOWS_ROWS,
    "encoder_outputs": KNOWS_ROWS,
    "decoder_inputs_embeds": KNOWS_ROWS,
    "cache": KNOWS_ROWS,
    "past_key_values": KNOWS_ROWS,
    "labels": KNOWS_ROWS,
    "logits_processor": KNOWS_ROWS,
    "stopping_criteria": KNOWS_ROWS,
    "streamer": KNOWS_ROWS,
    "negative_prompt_ids": KNOWS_ROWS,
    "negative_prompt_attention_mask": KNOWS_ROWS,
}


def check_options(model: PreTrainedModel, options: dict[str, Any]) -> None:
    """Refuse options that would reach other lines than they were meant for.

    Raises:
        ValueError: an option of `REFUSED`; any other tensor, whose rows may be lines; a mask without a prompt;
            start tokens in a generation config, which has no lines.
    """
    for name, value in options.items():
        if value is None:
            continue
        if name in REFUSED:
            raise ValueError(f"{name} cannot be given here: {REFUSED[name]}")
        if isinstance(value, torch.Tensor) and name not in (PROMPT, PROMPT_MASK, START, "eos_token_id"):
            raise ValueError(f"{name} cannot be given here: {KNOWS_ROWS}")
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
        ValueError: an option has no row for one of them.
    """
    chosen = dict(options)
    for name, rows in _rows(options).items():
        if places and max(places) >= len(rows):
            raise ValueError(f"{name} has {len(rows):,} rows, and there are more lines; give it one for each line")
        chosen[name] = rows[list(places)] if isinstance(rows, torch.Tensor) else [rows[i] for i in places]
    function = options.get(PREFIX_FUNCTION)
    if function is not None:
        numbers = list(places)
        chosen[PREFIX_FUNCTION] = lambda row, target: function(numbers[row], target)
    return chosen


def prompts_of(
    model: PreTrainedModel, options: dict[str, Any], lines: int, first_line: int = 1
) -> list[list[int]] | None:
    """The prompt of each line's target, without padding, as `generate` would have it for the line alone.

    Args:
        options: as for `translate_lines`, with `lines` rows.
        first_line: the number of the first, for error messages.

    Returns:
        For each line its tokens, the first of them `decoder_start_token_id`; `None`: none were given.

    Raises:
        ValueError: rows that are no tensor `(lines, length)`; a mask of another shape, or one that hides anything but
            padding on the left; a row without a token.
    """
    rows, mask = options.get(PROMPT), options.get(PROMPT_MASK)
    if rows is None:
        return [[int(start)] for start in options[START]] if START in _rows(options) else None
    starts = _start_tokens(model, options, lines)
    if not isinstance(rows, torch.Tensor) or rows.dim() != 2 or rows.shape[1] == 0:
        raise ValueError(f"{PROMPT} must be a tensor (lines, length) with at least one token in each row")
    mask = torch.ones_like(rows) if mask is None else mask
    if not isinstance(mask, torch.Tensor) or mask.shape != rows.shape:
        raise ValueError(f"{PROMPT_MASK} must be a tensor of the shape of {PROMPT}, {tuple(rows.shape)}")
    prompts = []
    for row, (tokens, kept, start) in enumerate(zip(rows.tolist(), mask.bool().tolist(), starts, strict=True)):
        if not kept[-1] or kept != sorted(kept):
            raise ValueError(f"{PROMPT_MASK}, line {row + first_line}: it may hide padding on the left alone")
        prompt = tokens[kept.index(True) :]
        prompts.append(prompt if start in (None, prompt[0]) else [start, *prompt])
    return prompts


def _rows(options: dict[str, Any]) -> dict[str, Any]:
    """The options that have a row for each line."""
    found = {name: options[name] for name in (PROMPT, PROMPT_MASK) if options.get(name) is not None}
    start = options.get(START)
    if isinstance(start, list | tuple) or (isinstance(start, torch.Tensor) and start.dim() > 0):
        found[START] = start
    return found


def _start_tokens(model: PreTrainedModel, options: dict[str, Any], lines: int) -> list[int | None]:
    """The token that each target begins with, as `generate` resolves it."""
    if START in _rows(options):
        return [int(token) for token in options[START]]
    configs = [config for config in (options.get("generation_config"), model.generation_config) if config is not None]
    given = [options.get(START), *(config.decoder_start_token_id for config in configs)]
    given += [config.bos_token_id for config in configs]
    return [next((int(token) for token in given if token is not None), None)] * lines
