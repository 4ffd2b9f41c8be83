# SPDX-License-Identifier: Apache-2.0
"""Word alignments of finished translations, from the attention over the source in one more pass.

As Garg et al. (2019) do: each target token is linked to the source token with the largest weight in the mean of the
heads, tokens without a word left out, and two words are linked if any of their tokens are.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from vanilla_transformer.data.alignment import NO_WORD, Link, tokenize_words
from vanilla_transformer.inference.line_options import resolved
from vanilla_transformer.inference.model_modes import eager_attention, evaluation_mode
from vanilla_transformer.language_tags import tag_options

# In generation_config.json. Whisper's has the first, pairs of decoder layer and head, too.
HEADS, SHIFT = "alignment_heads", "alignment_shift"
MAX_WEIGHTS = 2**18  # of a head in a batch: pairs x target tokens x source tokens


@dataclass(frozen=True)
class AlignmentHeads:
    """Heads of the attention over the source whose mean aligns, as (decoder layer, head), counted from 0.

    Args:
        shift: 0: the row that predicts a token aligns it; 1: the row that reads it (Chen et al. 2020).
    """

    heads: tuple[tuple[int, int], ...]
    shift: int = 0


def alignment_heads_of(model: PreTrainedModel) -> AlignmentHeads:
    """The heads that generation_config.json names; the only head of a model that has one.

    Raises:
        ValueError: a model without attention over the source; one of several heads that names none; heads that it
            does not have.
    """
    layers, heads = count_heads(model)
    named = getattr(model.generation_config, HEADS, None)
    shift = getattr(model.generation_config, SHIFT, None) or 0
    if named is None and (layers, heads) == (1, 1):
        return AlignmentHeads(((0, 0),), shift)
    if named is None:
        raise ValueError(
            f"generation_config.json has no {HEADS}, and the decoder has {layers} layers of {heads} heads: choose them "
            "with `vanilla-transformer align MODEL --source … --target … --reference … --choose`"
        )
    if not named or not all(0 <= layer < layers and 0 <= head < heads for layer, head in named):
        raise ValueError(f"{HEADS}={named} must be pairs of a layer below {layers} and a head below {heads}")
    return AlignmentHeads(tuple((layer, head) for layer, head in named), shift)


def count_heads(model: PreTrainedModel) -> tuple[int, int]:
    """Layers, and heads of each, that attend over the source.

    Raises:
        ValueError: the model has no attention over the source.
    """
    config: Any = model.config
    attention = getattr(config, "attention", None)  # of an RNN
    if attention == "none":
        raise ValueError("this model has no attention over the source, by which it could align (attention='none')")
    if attention is not None:
        return 1, 1
    layers = getattr(config, "num_decoder_layers", None) or config.decoder_layers
    return layers, getattr(config, "num_heads", None) or config.decoder_attention_heads


@torch.inference_mode()
def align(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sources: Sequence[str],
    targets: Sequence[str],
    candidates: Sequence[AlignmentHeads] | None = None,
    *,
    tag: str | None = None,
    target_language: str | None = None,
) -> list[list[list[Link]]]:
    """The links of each pair by each of the candidates, sorted.

    Args:
        sources, targets: as many of both; an empty one has no links.
        candidates: `None`: the one of `alignment_heads_of`.
        tag, target_language: as for `translate_lines`.

    Raises:
        ValueError: as `alignment_heads_of`, `tag_options` and `tokenize_words`; a model that returns no weights.
    """
    candidates = [alignment_heads_of(model)] if candidates is None else candidates
    before, options = tag_options(tokenizer, model.generation_config, tag, target_language)
    forced = resolved(model, options, "forced_bos_token_id")
    starts = [resolved(model, {}, name) for name in ("decoder_start_token_id", "bos_token_id")]
    first = [next(start for start in starts if start is not None), *([] if forced is None else [forced])]
    source_ids, source_words = tokenize_words(tokenizer, sources)
    target_ids, target_words = tokenize_words(tokenizer, targets, is_target=True)
    results: list[list[list[Link]]] = [[[] for _ in candidates] for _ in sources]
    lengths = {
        i: max(map(len, sides))
        for i, sides in enumerate(zip(source_words, target_words, strict=True))
        if all(map(any, sides))
    }
    with evaluation_mode(model), eager_attention(model):
        for batch in _batches(lengths):
            # The row after the last word's token is the first that reads it; the end of the sentence is not needed.
            counts = [max(k for k, own in enumerate(target_words[i], start=1) if own) for i in batch]
            decoder_ids = [first + target_ids[i][:count] for i, count in zip(batch, counts, strict=True)]
            words = [[NO_WORD] * len(before) + source_words[i] for i in batch]
            weights = _cross_attentions(model, [before + source_ids[i] for i in batch], decoder_ids)
            has_word = pad_sequence([torch.tensor([bool(w) for w in row]) for row in words], batch_first=True)
            for c, candidate in enumerate(candidates):
                mean = torch.stack([weights[layer][:, head] for layer, head in candidate.heads]).mean(dim=0)
                mean = mean.masked_fill(~has_word[:, None].to(mean.device), -1)  # (batch, rows, source_length)
                best = mean.argmax(dim=-1).tolist()
                for i, row, row_words in zip(batch, best, words, strict=True):
                    own = row[len(first) - 1 + candidate.shift :]
                    pairs = zip(own, target_words[i], strict=False)
                    results[i][c] = sorted({(s, t) for k, ts in pairs for t in ts for s in row_words[k]})
    return results


def _batches(lengths: dict[int, int]) -> Iterator[list[int]]:
    """Pairs of similar length, the longest first; `lengths` are of their longer sides, in tokens."""
    order = sorted(lengths, key=lambda i: -lengths[i])
    while order:
        count = max(1, MAX_WEIGHTS // lengths[order[0]] ** 2)
        yield order[:count]
        order = order[count:]


def _cross_attentions(model: Any, source_ids: list[list[int]], decoder_ids: list[list[int]]) -> Sequence[torch.Tensor]:
    """Weights of each decoder layer in one pass, `(batch, heads, target_length, source_length)`."""
    pad = resolved(model, {}, "pad_token_id") or 0  # any token will do where the mask, or the causal order, hides it
    sources, inputs = (
        pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=pad).to(model.device)
        for rows in (source_ids, decoder_ids)
    )
    lengths = torch.tensor([len(row) for row in source_ids], device=model.device)
    mask = (torch.arange(sources.shape[1], device=model.device) < lengths[:, None]).long()
    options = {"use_cache": False, "output_attentions": True, "return_dict": True}
    outputs = model(input_ids=sources, attention_mask=mask, decoder_input_ids=inputs, **options)
    if not outputs.cross_attentions:
        raise ValueError(f"the model of model_type={model.config.model_type!r} returns no weights of its attention")
    return outputs.cross_attentions
