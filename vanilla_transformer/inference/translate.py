# SPDX-License-Identifier: Apache-2.0
"""Lines in, translations out: batched by length, in the order of the input.

Models of this package decode by the paper's beam search (`generation.beam_search`), with a decoder that is prepared
once; other encoder-decoders by transformers' own `generate`.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from vanilla_transformer.generation import BuildsDecoder, DecodingError, beam_search
from vanilla_transformer.inference.line_options import (
    PROMPT,
    PROMPT_MASK,
    check_counts,
    check_options,
    options_of,
    prompts_of,
)
from vanilla_transformer.inference.native.engine import Engine, native_decoder
from vanilla_transformer.inference.native.forks import compute_after_fork
from vanilla_transformer.inference.native.parallel_batches import parallel_batches
from vanilla_transformer.inference.native.transformer import NativeDecoder
from vanilla_transformer.packed_linear import Precision
from vanilla_transformer.seq2seq_base import BaseForConditionalGeneration

LINES_NAMED = 10  # in an error message
LINES_SIDE_BY_SIDE = 16  # for each thread, at least; threads that have fewer share a batch


@dataclass(frozen=True)
class Translation:
    """One translation; `score` is its log-probability over the paper's length penalty, `None` without beam search.

    Models from elsewhere have transformers' score, log-probability / length^`length_penalty`.
    """

    text: str
    score: float | None = None


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
    decoder: Any = None,
    **generate_kwargs,
) -> list[list[Translation]]:
    """Translate every line; an empty one, or one without a token, gives an empty translation.

    Args:
        max_batch_tokens: padded source tokens times beams in all batches that are decoded at once, which is one, or
            one for each thread where compiled loops decode; a longer line is a batch of its own.
        max_length: tokens of the longest line that is taken on; `None`: there is no limit. Memory grows with the
            square of a line's length, and time faster than that, so one line can stop a whole file.
        num_return_sequences: translations for each line, best first; at most as many as beams.
        on_progress: called with (lines done, lines in all) after every batch.
        first_line: number of `lines[0]` in the user's file, for error messages.
        decoder: as `fast_decoder` makes it, to have it made once for many calls; `None`: it is made for this one.
        generate_kwargs: as for `model.generate`, and `beam_search`'s own; the rest comes from the model's generation
            config. An argument with a row for each line follows its line: `decoder_input_ids`, left-padded by
            `decoder_attention_mask`, and a list of `decoder_start_token_id`. `prefix_allowed_tokens_fn` gets the
            number of the line, counted from 0, and may be called by several threads.

    Returns:
        For each line, in order, its `num_return_sequences` translations; fewer where no more are possible.

    Raises:
        ValueError: a number below 1; an alpha that is not finite; more translations than beams; a line that is no
            string, or longer than `max_length`, before any is translated; an option that `line_options.REFUSED` lists,
            or one with other than a row for each line; or `generate` refused a batch (a line too long, options that do
            not go together, weights that are NaN).
        RuntimeError: decoding failed in another way. Both name the line at fault where that is known, otherwise the
            lines of the batch.
    """
    numbers_given = {
        "max_batch_tokens": max_batch_tokens,
        "max_length": max_length,
        "num_return_sequences": num_return_sequences,
    }
    for name, value in numbers_given.items():
        if value is not None and value < 1:
            raise ValueError(f"{name}={value} must be at least 1")
    alpha = generate_kwargs.get("alpha")
    if alpha is not None and not math.isfinite(alpha):
        raise ValueError(f"alpha={alpha} must be a finite number")
    beams = beam_width(model, generate_kwargs)
    if num_return_sequences > beams:
        raise ValueError(f"num_return_sequences={num_return_sequences} needs at least as many beams: num_beams={beams}")
    check_options(model, generate_kwargs)
    check_counts(generate_kwargs, len(lines))
    prompts = prompts_of(model, generate_kwargs, len(lines), first_line)
    results: list[list[Translation]] = [[Translation("")] * num_return_sequences for _ in lines]
    numbers, encoded = _encode(tokenizer, lines, first_line, max_length)
    # Models from elsewhere return what beams score only with the scores of every token.
    of_every_token = beams > 1 and not isinstance(model, BaseForConditionalGeneration)
    options = {**generate_kwargs, "num_return_sequences": num_return_sequences, "output_scores": of_every_token}
    done = len(lines) - len(numbers)
    compute_after_fork()
    was_training = model.training
    model.eval()
    try:
        if encoded:
            options |= paper_decoding(model, decoder, options.get("custom_generate"))
        at_once = 1
        if (
            isinstance(options.get("decoder"), NativeDecoder)
            and len(encoded) >= LINES_SIDE_BY_SIDE * torch.get_num_threads()
        ):
            at_once = torch.get_num_threads()
        sizes = [len(ids) * beams for ids in encoded]
        # Prompts of one length need no padding, whose mask not every decoder knows.
        prompt_lengths = [0 if prompts is None else len(prompts[i]) for i in numbers]
        batches = _batches(sizes, prompt_lengths, max_batch_tokens // at_once, -(-len(encoded) // at_once))

        def translate(batch: list[int]) -> list[list[Translation]]:
            try:
                own = options_of(options, [numbers[i] for i in batch])
                if prompts is not None:
                    own[PROMPT] = torch.tensor([prompts[numbers[i]] for i in batch], device=model.device)
                    own.pop(PROMPT_MASK, None)  # there is no padding
                return _translate_batch(model, tokenizer, [encoded[i] for i in batch], own)
            except Exception as error:
                kind = ValueError if isinstance(error, ValueError) else RuntimeError
                if isinstance(error, DecodingError):
                    where = f"at line {numbers[batch[error.sentence]] + first_line}"
                else:
                    where = f"in the batch with {_name_lines(sorted(numbers[i] + first_line for i in batch))}"
                raise kind(f"decoding failed {where}: {' '.join(str(error).split())}") from error

        found = parallel_batches(translate, batches) if at_once > 1 else map(translate, batches)
        for batch, translations in zip(batches, found, strict=True):
            for i, best in zip(batch, translations, strict=True):
                results[numbers[i]] = best
            done += len(batch)
            if on_progress is not None:
                on_progress(done, len(lines))
    finally:
        model.train(was_training)
    return results


def _batches(sizes: list[int], prompt_lengths: list[int], max_tokens: int, max_lines: int) -> list[list[int]]:
    """Lines by their number in `sizes`, which is tokens times beams; the longest first: memory fails at once.

    The lines of a batch have prompts of one length.
    """
    alike: dict[int, list[int]] = {}
    for i in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        alike.setdefault(prompt_lengths[i], []).append(i)
    batches = []
    for order in alike.values():
        while order:
            count = max(1, min(max_lines, max_tokens // sizes[order[0]]))
            batches.append(order[:count])
            order = order[count:]
    return sorted(batches, key=lambda batch: -sizes[batch[0]])


def _encode(
    tokenizer: PreTrainedTokenizerBase, lines: Sequence[str], first_line: int, max_length: int | None
) -> tuple[list[int], list[list[int]]]:
    """The places in `lines` of those that have anything to translate, and their tokens."""
    for number, line in enumerate(lines, start=first_line):
        if not isinstance(line, str):
            raise ValueError(f"line {number} must be a string; {type(line).__name__} was given")
    places = [i for i, line in enumerate(lines) if line.strip()]
    encoded = tokenizer([lines[i] for i in places])["input_ids"] if places else []
    for i, ids in zip(places, encoded, strict=True):
        if max_length is not None and len(ids) > max_length:
            raise ValueError(
                f"line {i + first_line} has {len(ids):,} tokens, more than the limit of {max_length:,}; split it into "
                "sentences, or raise max_length (--max-tokens)"
            )
    found = [(i, ids) for i, ids in zip(places, encoded, strict=True) if ids]
    return [i for i, _ in found], [ids for _, ids in found]


def paper_decoding(model: PreTrainedModel, decoder: Any, custom_generate: Any = None) -> dict[str, Any]:
    """The options that make `generate` the paper's decoding, for models of this package; none for others.

    Raises:
        ValueError: `custom_generate` asks a model of this package for another decoding.
    """
    if not isinstance(model, BaseForConditionalGeneration):
        return {} if decoder is None else {"decoder": decoder}  # which their `generate` refuses
    if custom_generate not in (None, beam_search):
        raise ValueError("custom_generate: models of this package are translated by beam_search; call model.generate")
    return {"custom_generate": beam_search, "decoder": fast_decoder(model) if decoder is None else decoder}


def fast_decoder(model: PreTrainedModel, precision: Precision = "float32", engine: Engine = "auto") -> Any:
    """The weights laid out for decoding; `None` where the model itself has to decode, which is as precise as it is.

    Args:
        engine: as for `native_decoder`; PyTorch decodes by `model.build_decoder(precision)`.

    Raises:
        ValueError: int8 for a model of this package whose decoder has been changed; and as `native_decoder`.
    """
    compute_after_fork()
    native = native_decoder(model, precision, engine)
    if native is not None:
        return native
    if isinstance(model, BuildsDecoder) and (precision == "int8" or model.can_build_decoder()):
        return model.build_decoder(precision)
    return None


def beam_width(model: PreTrainedModel, generate_kwargs: dict) -> int:
    """The beams, as `generate` resolves it: the keyword, else the generation config given, else the model's own."""
    configs = [generate_kwargs.get("generation_config"), model.generation_config]
    widths = [generate_kwargs.get("num_beams"), *(config.num_beams for config in configs if config is not None)]
    return next((width for width in widths if width is not None), 1)


def _name_lines(numbers: list[int]) -> str:
    more = f" and {len(numbers) - LINES_NAMED} more" if len(numbers) > LINES_NAMED else ""
    return f"line{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers[:LINES_NAMED]))}{more}"


@torch.inference_mode()
def generate(model: PreTrainedModel, inputs: Any, options: dict[str, Any]) -> Any:
    """What `model.generate` returns for a batch of sources; a native decoder reads them by its own encoder.

    Args:
        inputs: `input_ids` and `attention_mask`, `(batch, source_length)`.
        options: for `generate`, with those of `paper_decoding`.
    """
    if isinstance(options.get("decoder"), NativeDecoder):
        options = options | {"encoder_outputs": options["decoder"].encode(**inputs)}
    return model.generate(**inputs, **options, return_dict_in_generate=True)  # pyright: ignore[reportCallIssue] -- models mix it in; PreTrainedModel does not


def _translate_batch(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, ids: list[list[int]], options: dict
) -> list[list[Translation]]:
    inputs = tokenizer.pad({"input_ids": ids}, return_tensors="pt").to(model.device)  # (batch, source_length)
    output = generate(model, inputs, options)
    texts = tokenizer.batch_decode(output.sequences, skip_special_tokens=True)
    found = output.get("sequences_scores")  # none without beams
    scores = [None] * len(texts) if found is None else found.tolist()
    flat = [Translation(text, score) for text, score in zip(texts, scores, strict=True)]
    each = options["num_return_sequences"]
    groups = [flat[i : i + each] for i in range(0, len(flat), each)]
    # Where fewer targets exist than were asked for, the rest of the beams is nothing.
    return [[one for one in group if one.score != -math.inf] for group in groups]


def translate_stream(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    lines: Iterable[str],
    *,
    window: int = 2048,
    decoder: Any = None,
    **options,
) -> Iterator[list[Translation]]:
    """`translate_lines` for any iterable, without holding it all; yields in the order of the input.

    Args:
        window: lines that are read, and sorted by length, together.
        decoder: as for `translate_lines`; `None`: it is made once for the whole stream.
        options: as for `translate_lines`.

    Raises:
        ValueError: `window` below 1; and what `translate_lines` raises, line numbers counting from the stream's start.
    """
    if window < 1:
        raise ValueError(f"window={window} must be at least 1 line")
    lines = iter(lines)
    windows = iter(lambda: list(islice(lines, window)), [])
    return translate_windows(model, tokenizer, windows, decoder=decoder, **options)


def translate_windows(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    windows: Iterable[Sequence[str]],
    *,
    decoder: Any = None,
    **options,
) -> Iterator[list[Translation]]:
    """`translate_stream` for lines that come in windows already.

    Args:
        windows: lines that are sorted by length together.
        decoder, options: as for `translate_stream`. Arguments with a row for each line have rows for the lines of
            all windows.

    Raises:
        ValueError: as `translate_stream`.
    """
    decoder = fast_decoder(model) if decoder is None else decoder
    done = 0
    for window in windows:
        own = options_of(options, range(done, done + len(window)))
        yield from translate_lines(model, tokenizer, window, first_line=done + 1, decoder=decoder, **own)
        done += len(window)
    check_counts(options, done)


def translate_on_all_processes(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, lines: Sequence[str], **options
) -> list[list[Translation]]:
    """`translate_lines` with the lines shared by the processes that `accelerate launch` started.

    Every process must call it with the same lines, and gets the translations of all, in order. With one process it is
    `translate_lines`.
    """
    from accelerate.utils import gather_object  # not at the top: translating by itself does without Accelerate

    from vanilla_transformer.distributed.processes import process_state

    check_counts(options, len(lines))
    state = process_state()
    start, end = (len(lines) * (state.process_index + i) // state.num_processes for i in (0, 1))
    own = options_of(options, range(start, end))
    return gather_object(translate_lines(model, tokenizer, lines[start:end], first_line=start + 1, **own))
