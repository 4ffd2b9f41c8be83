# SPDX-License-Identifier: Apache-2.0
"""Lines in, translations out: batched by length, in the order of the input."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import LogitsProcessorList, PreTrainedModel, PreTrainedTokenizerBase

from vanilla_transformer.data.alignment import Link
from vanilla_transformer.decoder import Decoder
from vanilla_transformer.generation import DecodingError, beam_search
from vanilla_transformer.inference.alignment import align, alignment_heads_of
from vanilla_transformer.inference.line_options import (
    PROMPT,
    PROMPT_MASK,
    check_counts,
    check_options,
    options_of,
    prompts_of,
    resolved,
)
from vanilla_transformer.inference.model_modes import evaluation_mode
from vanilla_transformer.inference.native.engine import fast_decoder
from vanilla_transformer.inference.native.forks import compute_after_fork
from vanilla_transformer.inference.native.parallel_batches import parallel_batches
from vanilla_transformer.inference.sampling import GumbelSampler
from vanilla_transformer.language_tags import tag_options
from vanilla_transformer.seq2seq_base import BaseForConditionalGeneration

MAX_LINES_NAMED = 10  # in an error message
MIN_LINES_PER_BATCH = 16  # of parallel batches; fewer lines share one batch


@dataclass(frozen=True)
class Translation:
    """One translation; `score` is its log-probability over the paper's length penalty, `None` of greedy search.

    Models of other packages, and most that are imported, have log-probability / length^`length_penalty`.
    `alignment` has the links between words of the line and of the text, `None` where they were not asked for.
    """

    text: str
    score: float | None = None
    alignment: list[Link] | None = None

    @property
    def source_positions(self) -> list[list[int]] | None:
        """For each word of the text, the positions of the line's words that it is aligned with."""
        if self.alignment is None:
            return None
        return [[s for s, t in self.alignment if t == word] for word in range(len(self.text.split()))]


def translate_lines(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    lines: Sequence[str],
    *,
    max_batch_tokens: int,
    max_length: int | None = None,
    num_return_sequences: int = 1,
    on_progress: Callable[[int, int], object] | None = None,
    first_line: int = 1,
    decoder: Decoder | None = None,
    at_once: int | None = None,
    new_sampler: Callable[[Sequence[int]], GumbelSampler] | None = None,
    tag: str | None = None,
    target_language: str | None = None,
    alignments: bool = False,
    **generate_kwargs,
) -> list[list[Translation]]:
    """Translate every line; an empty one, or one without a token, gives an empty translation.

    Args:
        max_batch_tokens: padded source tokens times beams of all batches that are decoded at once; a longer line is a
            batch of its own.
        max_length: the longest line accepted, in tokens; `None`: any. Memory grows with the square of a line's length,
            and time faster than that, so one line can stop a whole file.
        num_return_sequences: translations for each line, best first; at most as many as beams.
        on_progress: called with (lines done, lines in all) after every batch.
        first_line: number of `lines[0]` in the user's file, for error messages.
        decoder: from `fast_decoder`, built once for many calls; `None`: built for this one.
        at_once: parallel batches; `None`: the decoder's own number, which may depend on the threads.
        new_sampler: places of a batch's lines → a processor that makes the greedy search sample; needs `num_beams=1`.
        tag: put before every source, such as "<bt>"; a token of the tokenizer, which no text gives.
        target_language: of a model of several, such as "de": by its tag "<2de>", where the model has learnt it.
        alignments: align the words of each translation with those of its line, as `align` does.
        generate_kwargs: as for `model.generate`, and `beam_search`'s own; the rest comes from the model's generation
            config. An argument with a row for each line follows its line: `decoder_input_ids`, left-padded by
            `decoder_attention_mask`, and a list of `decoder_start_token_id`. `prefix_allowed_tokens_fn` gets the
            number of the line, counted from 0, and may be called by several threads.

    Returns:
        For each line, in order, its `num_return_sequences` translations; fewer where fewer are possible.

    Raises:
        ValueError: a number below 1; more translations than beams; a line that is no string, or longer than
            `max_length`, before any is translated; an option of `line_options.REFUSED`, or one without a row for each
            line; alignments that `align` refuses; or `generate` refused a batch (options that do not go together,
            weights that are NaN).
        RuntimeError: decoding failed in another way. Both name the line at fault if known, else the batch's lines.
    """
    bounded = {"max_batch_tokens": max_batch_tokens, "max_length": max_length}
    for name, value in (bounded | {"num_return_sequences": num_return_sequences}).items():
        if value is not None and value < 1:
            raise ValueError(f"{name}={value} must be at least 1")
    beams = resolved(model, generate_kwargs, "num_beams") or 1
    if num_return_sequences > beams:
        raise ValueError(f"num_return_sequences={num_return_sequences} needs at least as many beams: num_beams={beams}")
    if new_sampler is not None and beams > 1:
        raise ValueError(f"num_beams={beams} must be 1 for sampling")
    check_options(model, generate_kwargs)
    if alignments:
        alignment_heads_of(model)
    before, of_language = tag_options(tokenizer, model.generation_config, tag, target_language)
    generate_kwargs = of_language | generate_kwargs
    check_counts(generate_kwargs, len(lines))
    prompts = prompts_of(model, generate_kwargs, len(lines), first_line)
    places, encoded = _encode(tokenizer, lines, first_line, max_length, before)
    results: list[list[Translation]] = [[Translation("")] * num_return_sequences for _ in lines]
    if not encoded:
        return results
    done = len(lines) - len(encoded)
    compute_after_fork()
    with evaluation_mode(model):
        decoder = decoder or fast_decoder(model)
        options = generate_kwargs | {"num_return_sequences": num_return_sequences}
        at_once = decoder.parallel_batches if at_once is None else at_once
        at_once = 1 if len(encoded) < MIN_LINES_PER_BATCH * at_once else at_once
        sizes = [len(ids) * beams for ids in encoded]
        # Prompts of one length need no padding, whose mask not every decoder reads.
        prompt_lengths = [0 if prompts is None else len(prompts[place]) for place in places]
        batches = _batches(sizes, prompt_lengths, max_batch_tokens // at_once, -(-len(encoded) // at_once))

        def translate(batch: list[int]) -> list[list[Translation]]:
            try:
                own = options_of(options, [places[i] for i in batch])
                if prompts is not None:
                    own[PROMPT] = torch.tensor([prompts[places[i]] for i in batch], device=model.device)
                    own.pop(PROMPT_MASK, None)  # there is no padding
                sampler = None if new_sampler is None else new_sampler([places[i] for i in batch])
                return _translate_batch(model, tokenizer, [encoded[i] for i in batch], decoder, own, sampler)
            except Exception as error:
                kind = ValueError if isinstance(error, ValueError) else RuntimeError
                if isinstance(error, DecodingError):
                    where = f"at line {places[batch[error.sentence]] + first_line}"
                else:
                    where = f"in the batch with {_name_lines(sorted(places[i] + first_line for i in batch))}"
                raise kind(f"decoding failed {where}: {' '.join(str(error).split())}") from error

        for batch, translations in zip(batches, parallel_batches(translate, batches, at_once), strict=True):
            for i, best in zip(batch, translations, strict=True):
                results[places[i]] = best
            done += len(batch)
            if on_progress is not None:
                on_progress(done, len(lines))
    if alignments:
        flat = [(line, translation) for line, best in zip(lines, results, strict=True) for translation in best]
        texts = [line for line, _ in flat], [translation.text for _, translation in flat]
        links = iter(align(model, tokenizer, *texts, tag=tag, target_language=target_language))
        results = [[replace(translation, alignment=next(links)[0]) for translation in best] for best in results]
    return results


def _encode(
    tokenizer: PreTrainedTokenizerBase,
    lines: Sequence[str],
    first_line: int,
    max_length: int | None,
    before: list[int],
) -> tuple[list[int], list[list[int]]]:
    """The indices of lines with at least one token, and the tokens of each."""
    for number, line in enumerate(lines, start=first_line):
        if not isinstance(line, str):
            raise ValueError(f"line {number} must be a string; {type(line).__name__} was given")
    filled = [i for i, line in enumerate(lines) if line.strip()]
    encoded = tokenizer([lines[i] for i in filled])["input_ids"] if filled else []
    tokens = {i: before + ids for i, ids in zip(filled, encoded, strict=True) if ids}
    for i, ids in tokens.items():
        if max_length is not None and len(ids) > max_length:
            raise ValueError(
                f"line {i + first_line} has {len(ids):,} tokens, more than the limit of {max_length:,}; split it into "
                "sentences, or raise max_length (--max-tokens)"
            )
    return list(tokens), list(tokens.values())


def _batches(sizes: list[int], prompt_lengths: list[int], max_tokens: int, max_lines: int) -> list[list[int]]:
    """Indices of `sizes` (tokens times beams), the longest first, so that memory runs out at once or never.

    All lines of a batch have prompts of one length.
    """
    by_prompt_length: dict[int, list[int]] = {}
    for i in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        by_prompt_length.setdefault(prompt_lengths[i], []).append(i)
    batches = []
    for order in by_prompt_length.values():
        while order:
            count = max(1, min(max_lines, max_tokens // sizes[order[0]]))
            batches.append(order[:count])
            order = order[count:]
    return sorted(batches, key=lambda batch: -sizes[batch[0]])


def _translate_batch(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    ids: list[list[int]],
    decoder: Decoder,
    options: dict[str, Any],
    sampler: GumbelSampler | None,
) -> list[list[Translation]]:
    inputs = tokenizer.pad({"input_ids": ids}, return_tensors="pt").to(model.device)  # (batch, source_length)
    if sampler is not None:
        options["logits_processor"] = LogitsProcessorList([sampler])
    output = generate(model, inputs, decoder, options)
    texts = tokenizer.batch_decode(output.sequences, skip_special_tokens=True)
    scores = output.get("sequences_scores")  # none without beams
    scores = [None] * len(texts) if scores is None else scores.tolist()
    if sampler is not None:
        eos, pad = (resolved(model, options, f"{name}_token_id") for name in ("eos", "pad"))
        eos = torch.tensor([] if eos is None else eos, dtype=torch.long, device=model.device).view(-1)
        scores = sampler.scores(output.sequences, eos, -1 if pad is None else pad)
    flat = [Translation(text, score) for text, score in zip(texts, scores, strict=True)]
    count = options["num_return_sequences"]
    groups = [flat[i : i + count] for i in range(0, len(flat), count)]
    # A score of -inf: fewer targets are possible than were asked for.
    return [[translation for translation in group if translation.score != -math.inf] for group in groups]


def _name_lines(numbers: list[int]) -> str:
    more = f" and {len(numbers) - MAX_LINES_NAMED} more" if len(numbers) > MAX_LINES_NAMED else ""
    return f"line{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers[:MAX_LINES_NAMED]))}{more}"


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


def translate_windows(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    windows: Iterable[Sequence[str]],
    *,
    decoder: Decoder,
    **options,
) -> Iterator[list[Translation]]:
    """`translate_lines` for a stream of windows, the lines of which are sorted by length together.

    Args:
        options: as for `translate_lines`; those with a row for each line have rows for all windows.

    Raises:
        ValueError: as `translate_lines`, line numbers counting from the start of the stream.
    """
    done = 0
    for window in windows:
        own = options_of(options, range(done, done + len(window)))
        yield from translate_lines(model, tokenizer, window, first_line=done + 1, decoder=decoder, **own)
        done += len(window)
    check_counts(options, done)


def translate_on_all_processes(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, lines: Sequence[str], **options
) -> list[list[Translation]]:
    """`translate_lines` with the lines sharded over the processes that `accelerate launch` started.

    Every process must call it with the same lines, and gets the translations of all, in order.
    """
    from accelerate.utils import gather_object  # not at the top: translating on one process needs no Accelerate

    from vanilla_transformer.distributed.processes import process_state, wait_for_everyone

    check_counts(options, len(lines))
    state = process_state()
    start, end = (len(lines) * (state.process_index + i) // state.num_processes for i in (0, 1))
    own = options_of(options, range(start, end))
    translations = translate_lines(model, tokenizer, lines[start:end], first_line=start + 1, **own)
    wait_for_everyone(uneven=True)
    return gather_object(translations)
