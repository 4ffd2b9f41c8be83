# SPDX-License-Identifier: Apache-2.0
"""Lines in, translations out: batched by length, in the order of the input."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

WINDOW = 2048  # lines of a stream that are sorted by length together


@dataclass(frozen=True)
class Translation:
    """One translation; `score` is transformers' (log-probability / length^p), `None` for greedy decoding."""

    text: str
    score: float | None = None


def translate_lines(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    lines: Sequence[str],
    *,
    max_batch_tokens: int,
    num_return_sequences: int = 1,
    on_progress: Callable[[int, int], None] | None = None,
    first_line: int = 1,
    **generate_kwargs,
) -> list[list[Translation]]:
    """Translate every line; an empty one gives an empty translation.

    Args:
        max_batch_tokens: padded source tokens times beams in a batch.
        num_return_sequences: translations for each line, best first.
        on_progress: called with (lines done, lines in all).
        first_line: number of `lines[0]` in the user's file, for error messages.
        generate_kwargs: as for `model.generate`; the rest comes from the model's generation config.

    Returns:
        For each line, in order, its `num_return_sequences` translations.

    Raises:
        RuntimeError: decoding failed; names the lines.
    """
    results: list[list[Translation]] = [[Translation("")] * num_return_sequences for _ in lines]
    numbers = [i for i, line in enumerate(lines) if line.strip()]
    encoded = tokenizer([lines[i] for i in numbers])["input_ids"] if numbers else []
    order = sorted(range(len(numbers)), key=lambda i: -len(encoded[i]))  # the longest first: memory fails at once
    beams = generate_kwargs.get("num_beams") or model.generation_config.num_beams or 1
    done = len(lines) - len(numbers)
    was_training = model.training
    model.eval()
    try:
        while order:
            size = max(1, max_batch_tokens // (len(encoded[order[0]]) * beams))
            batch, order = order[:size], order[size:]
            ids = [encoded[i] for i in batch]
            try:
                translations = _translate_batch(model, tokenizer, ids, num_return_sequences, generate_kwargs)
            except Exception as error:
                where = ", ".join(str(numbers[i] + first_line) for i in sorted(batch)[:10])
                raise RuntimeError(f"decoding failed in the batch with line(s) {where}: {error}") from error
            for i, best in zip(batch, translations, strict=True):
                results[numbers[i]] = best
            done += len(batch)
            if on_progress is not None:
                on_progress(done, len(lines))
    finally:
        model.train(was_training)
    return results


@torch.inference_mode()
def _translate_batch(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    ids: list[list[int]],
    num_return_sequences: int,
    generate_kwargs: dict,
) -> list[list[Translation]]:
    inputs = tokenizer.pad({"input_ids": ids}, return_tensors="pt").to(model.device)  # (batch, source_length)
    output = model.generate(
        **inputs,
        num_return_sequences=num_return_sequences,
        return_dict_in_generate=True,
        output_scores=True,
        **generate_kwargs,
    )
    texts = tokenizer.batch_decode(output.sequences, skip_special_tokens=True)
    scores = output.get("sequences_scores")
    scores = [None] * len(texts) if scores is None else scores.tolist()
    flat = [Translation(text, score) for text, score in zip(texts, scores, strict=True)]
    return [flat[i : i + num_return_sequences] for i in range(0, len(flat), num_return_sequences)]


def translate_stream(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, lines: Iterable[str], **options
) -> Iterator[list[Translation]]:
    """`translate_lines` for any iterable, a window of lines at a time; yields in the order of the input."""
    lines = iter(lines)
    first_line = 1
    while window := list(islice(lines, WINDOW)):
        yield from translate_lines(model, tokenizer, window, first_line=first_line, **options)
        first_line += len(window)
