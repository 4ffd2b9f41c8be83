# SPDX-License-Identifier: Apache-2.0
"""Lines in, translations out: batched by length, in the order of the input."""

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from vanilla_transformer.decoder import Decoder
from vanilla_transformer.ensemble import EnsembleDecoder
from vanilla_transformer.generation import DecodingError
from vanilla_transformer.inference.alignment import align, alignment_heads_of
from vanilla_transformer.inference.constraints import ConstrainedBeams, LineConstraints, constraints_of_lines
from vanilla_transformer.inference.forced_decoding import encode_targets
from vanilla_transformer.inference.line_options import (
    PREFIXES,
    PROMPT,
    PROMPT_MASK,
    TARGETS,
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
from vanilla_transformer.inference.sentences import join_sentences, split_lines
from vanilla_transformer.inference.shortlist import ShortlistDecoder
from vanilla_transformer.inference.terms import LexicalConstraints
from vanilla_transformer.inference.translation import Translation, translate_batch
from vanilla_transformer.language_tags import tag_options
from vanilla_transformer.seq2seq_base import BaseForConditionalGeneration

MAX_LINES_NAMED = 10  # in an error message
MIN_LINES_PER_BATCH = 16  # of parallel batches; fewer lines share one batch


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
    log_probs: bool = False,
    best_log_probs: bool = False,
    targets: Sequence[str] | None = None,
    prefixes: Sequence[str] | None = None,
    constraints: LexicalConstraints | None = None,
    split_sentences: str | None = None,
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
        log_probs: also return the tokens and their log-probabilities, which a second pass computes.
        best_log_probs: with them the log-probability of the most probable token at each place.
        targets: translations to score in place of a search, one for each line. Their tokens are the tokenizer's; a tag
            that they begin with has log-probability 0, because the search forces it.
        prefixes: beginnings of the translations, a text for each line, "" for any. Its tokens count for score and
            length as others do. A prefix should end where a word ends: its last token is not changed.
        constraints: terms that each translation has, as often as they are given; needs two beams.
        split_sentences: language code by which each line is split into sentences, which are translated by themselves
            and joined again; needs `sentencex`. There is then one translation of a line, without a score.
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
            line; a target of an empty line, or options of a search with targets; prefixes or terms for a model of
            another package, or that cannot be had; targets, prefixes, terms or `eos_token_id` with a shortlist;
            `split_sentences` with options for whole lines; alignments that `align` refuses, or of an ensemble; or
            `generate` refused a batch (options that do not go together, weights that are NaN).
        RuntimeError: decoding failed in another way. Both name the line at fault if known, else the batch's lines.
    """
    beams = resolved(model, generate_kwargs, "num_beams") or 1
    bounded = {"max_batch_tokens": max_batch_tokens, "max_length": max_length}
    for name, value in (bounded | {"num_return_sequences": num_return_sequences}).items():
        if value is not None and value < 1:
            raise ValueError(f"{name}={value} must be at least 1")
    _check_together(
        model,
        generate_kwargs,
        beams,
        num_return_sequences,
        new_sampler=new_sampler,
        targets=targets,
        prefixes=prefixes,
        constraints=constraints,
        split_sentences=split_sentences,
        log_probs=log_probs,
    )
    if isinstance(decoder, ShortlistDecoder):
        given = targets, prefixes, constraints, generate_kwargs.get("eos_token_id")
        if any(each is not None for each in given):
            names = "targets, prefixes, terms and eos_token_id"
            raise ValueError(f"a shortlist may lack the tokens of {names}: leave it, or them, out")
    check_options(model, generate_kwargs)
    if alignments:
        if isinstance(decoder, EnsembleDecoder) and len(decoder.decoders) > 1:
            raise ValueError("alignments are of one model's attention, and this is an ensemble: leave them out")
        alignment_heads_of(model)
    before, of_language = tag_options(tokenizer, model.generation_config, tag, target_language)
    generate_kwargs = of_language | generate_kwargs
    check_counts(generate_kwargs | {PREFIXES: prefixes, TARGETS: targets}, len(lines))
    prompts = prompts_of(model, generate_kwargs, len(lines), first_line)
    for number, line in enumerate(lines, start=first_line):
        if not isinstance(line, str):
            raise ValueError(f"line {number} must be a string; {type(line).__name__} was given")
    line_of, texts = range(len(lines)), list(lines)
    if split_sentences is not None:
        line_of, texts = split_lines(lines, split_sentences)
    terms: list[list[str]] = [[] for _ in texts]
    if constraints is not None:
        pairs = [constraints.of(text) for text in texts]
        texts, terms = [source for source, _ in pairs], [own for _, own in pairs]
    kept, encoded = _encode(tokenizer, texts, [first_line + i for i in line_of], max_length, before)
    places = [line_of[i] for i in kept]
    results: list[list[Translation]] = [[Translation("")] * num_return_sequences for _ in texts]
    written = None
    if targets is not None:
        forced = resolved(model, generate_kwargs, "forced_bos_token_id")
        written = encode_targets(tokenizer, targets, places, first_line, max_length, forced)

    def of_whole_lines() -> list[list[Translation]]:
        return results if split_sentences is None else _joined(results, texts, line_of, len(lines))

    if not encoded:
        return of_whole_lines()
    constrained = constraints_of_lines(
        model, tokenizer, [terms[i] for i in kept], prefixes, places, first_line, generate_kwargs
    )
    done = len(texts) - len(encoded)
    compute_after_fork()
    with evaluation_mode(model):
        decoder = decoder or fast_decoder(model)
        options = generate_kwargs | {"num_return_sequences": num_return_sequences}
        at_once = decoder.parallel_batches if at_once is None else at_once
        at_once = 1 if len(encoded) < MIN_LINES_PER_BATCH * at_once else at_once
        sizes = [len(ids) * beams for ids in encoded]
        if written is not None:
            sizes = [len(ids) + len(target) for ids, target in zip(encoded, written, strict=True)]
        num_log_probs = 2 if best_log_probs else int(log_probs or targets is not None)
        # Prompts of one length need no padding, whose mask not every decoder reads.
        prompt_lengths = [0 if prompts is None else len(prompts[place]) for place in places]
        max_lines = -(-len(encoded) // at_once)

        def translate(batch: list[int], applied: Sequence[LineConstraints | None]) -> list[list[Translation]]:
            try:
                own = options_of(options, [places[i] for i in batch])
                if prompts is not None:
                    own[PROMPT] = torch.tensor([prompts[places[i]] for i in batch], device=model.device)
                    own.pop(PROMPT_MASK, None)  # there is no padding
                if of_batch := [each for i in batch if (each := applied[i])]:
                    if of_batch[0].terms:  # hypotheses of a low score would be followed for long
                        own = {"early_stopping": True} | own
                    own["select_candidates"] = ConstrainedBeams(of_batch)
                sampler = None if new_sampler is None else new_sampler([places[i] for i in batch])
                ids, given = [encoded[i] for i in batch], None if written is None else [written[i] for i in batch]
                found = translate_batch(model, tokenizer, ids, decoder, own, sampler, given, num_log_probs)
                if targets is None:
                    return found
                return [[replace(each, text=targets[places[i]])] for i, [each] in zip(batch, found, strict=True)]
            except Exception as error:
                kind = ValueError if isinstance(error, ValueError) else RuntimeError
                if isinstance(error, DecodingError):
                    where = f"at line {places[batch[error.sentence]] + first_line}"
                else:
                    where = f"in the batch with {_name_lines(sorted(places[i] + first_line for i in batch))}"
                raise kind(f"decoding failed {where}: {' '.join(str(error).split())}") from error

        # The fast search comes first, for many translations have their terms without being forced.
        waiting = list(range(len(encoded)))
        for is_forced in (False, True):
            applied = constrained if is_forced else [each and each.without_terms for each in constrained]
            groups = [(length, each is None) for length, each in zip(prompt_lengths, applied, strict=True)]
            batches = _batches(waiting, sizes, groups, max_batch_tokens // at_once, max_lines)
            function, waiting = partial(translate, applied=applied), []
            for batch, translations in zip(batches, parallel_batches(function, batches, at_once), strict=True):
                for i, best in zip(batch, translations, strict=True):
                    results[kept[i]], line = best, constrained[i]
                    if is_forced or line is None or line.accepts([each.text for each in best]):
                        done += 1
                    else:
                        line.give_banks_beside(best[0].text)
                        waiting.append(i)
                if on_progress is not None:
                    on_progress(done * len(lines) // len(texts), len(lines))
    results = of_whole_lines()
    if not alignments:
        return results
    sources = lines if constraints is None else [constraints.of(line)[0] for line in lines]
    flat = [(source, each) for source, best in zip(sources, results, strict=True) for each in best]
    translated = [source for source, _ in flat], [each.text for _, each in flat]
    links = iter(align(model, tokenizer, *translated, tag=tag, target_language=target_language))
    return [[replace(each, alignment=next(links)[0]) for each in best] for best in results]


def _check_together(
    model: PreTrainedModel,
    options: dict[str, Any],
    beams: int,
    num_return_sequences: int,
    *,
    new_sampler: object,
    targets: object,
    prefixes: object,
    constraints: LexicalConstraints | None,
    split_sentences: str | None,
    log_probs: bool,
) -> None:
    """Raises ValueError for options that do not go together; arguments as for `translate_lines`."""
    if num_return_sequences > beams:
        raise ValueError(f"num_return_sequences={num_return_sequences} needs at least as many beams: num_beams={beams}")
    if new_sampler is not None and beams > 1:
        raise ValueError(f"num_beams={beams} must be 1 for sampling")
    if targets is not None and (num_return_sequences > 1 or new_sampler or options.get("coverage_penalty")):
        raise ValueError("targets are scored, not searched: leave samples, n-best and coverage_penalty out")
    if constraints is not None or prefixes is not None:
        if not isinstance(model, BaseForConditionalGeneration) or new_sampler is not None or targets is not None:
            raise ValueError("prefixes and terms are for the beam search of this package's models")
        if constraints is not None and beams < 2:
            raise ValueError(f"num_beams={beams} must be at least 2 where terms are given")
    if split_sentences is not None:
        in_lines = constraints is not None and constraints.in_lines
        given = prefixes, targets, new_sampler, options.get(PROMPT)
        if in_lines or num_return_sequences > 1 or log_probs or any(each is not None for each in given):
            raise ValueError(
                "split_sentences: prefixes, terms in lines, n-best, samples, scores and targets are of whole lines"
            )


def _joined(
    results: list[list[Translation]], sentences: list[str], line_of: Sequence[int], lines: int
) -> list[list[Translation]]:
    """The translation of each line, from those of its sentences."""
    of_line: list[list[int]] = [[] for _ in range(lines)]
    for i, place in enumerate(line_of):
        of_line[place].append(i)
    return [
        [Translation(join_sentences([results[i][0].text for i in own], [sentences[i] for i in own]))] for own in of_line
    ]


def _encode(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    line_numbers: Sequence[int],
    max_length: int | None,
    before: list[int],
) -> tuple[list[int], list[list[int]]]:
    """The indices of texts with at least one token, and the tokens of each."""
    filled = [i for i, text in enumerate(texts) if text.strip()]
    encoded = tokenizer([texts[i] for i in filled])["input_ids"] if filled else []
    tokens = {i: before + ids for i, ids in zip(filled, encoded, strict=True) if ids}
    for i, ids in tokens.items():
        if max_length is not None and len(ids) > max_length:
            raise ValueError(
                f"line {line_numbers[i]} has {len(ids):,} tokens, more than the limit of {max_length:,}; split it into "
                "sentences (--split-sentences), or raise max_length (--max-tokens)"
            )
    return list(tokens), list(tokens.values())


def _batches(
    indices: list[int], sizes: list[int], groups: Sequence[Hashable], max_tokens: int, max_lines: int
) -> list[list[int]]:
    """Batches of these indices of `sizes` (tokens times beams), the longest first: memory runs out at once or never.

    All lines of a batch are of one group.
    """
    by_group: dict[Hashable, list[int]] = {}
    for i in sorted(indices, key=lambda i: -sizes[i]):
        by_group.setdefault(groups[i], []).append(i)
    batches = []
    for order in by_group.values():
        while order:
            count = max(1, min(max_lines, max_tokens // sizes[order[0]]))
            batches.append(order[:count])
            order = order[count:]
    return sorted(batches, key=lambda batch: -sizes[batch[0]])


def _name_lines(numbers: list[int]) -> str:
    more = f" and {len(numbers) - MAX_LINES_NAMED} more" if len(numbers) > MAX_LINES_NAMED else ""
    return f"line{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers[:MAX_LINES_NAMED]))}{more}"


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
