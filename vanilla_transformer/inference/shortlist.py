# SPDX-License-Identifier: Apache-2.0
"""Vocabulary shortlists (Jean et al. 2015, section 3.3): a translation has only tokens that its source suggests.

They come from a lexical table in the text form of Marian's `--shortlist`, `target source probability`, a line for each
pair of tokens.
"""

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from transformers.utils.generic import ModelOutput

from vanilla_transformer.data.alignment import parse_alignment, tokenize_words
from vanilla_transformer.data.corpus import read_lines
from vanilla_transformer.data.tokenizer_class import TARGET_TOKENIZER
from vanilla_transformer.decoder import Decoder, DecoderState, SupportsSelect
from vanilla_transformer.inference.native.rnn import NativeRecurrentDecoder
from vanilla_transformer.inference.native.transformer import NativeDecoder
from vanilla_transformer.seq2seq_base import BaseForConditionalGeneration

FREQUENT = BEST = 100  # Marian's defaults, too
CHUNK = 1000  # pairs that are tokenized together
FIELD = re.compile(r"[^ \t\r]+")  # a token may have other white space, such as a no-break space


class Shortlist:
    """The target tokens that a sentence may have, whatever other sentences are in its batch.

    They are the EOS tokens, the `frequent` target tokens with the highest sum of probabilities over all source tokens,
    the `best` of each source token of the sentence, and with one vocabulary this source token, as in Marian.

    Args:
        probabilities: source token → target token → probability.
    """

    def __init__(
        self,
        probabilities: dict[int, dict[int, float]],
        model: BaseForConditionalGeneration,
        frequent: int = FREQUENT,
        best: int = BEST,
    ):
        config: Any = model.config
        eos = model.generation_config.eos_token_id
        always = list(eos) if isinstance(eos, list) else [config.eos_token_id if eos is None else eos]
        self.padding = always[0]
        totals: Counter[int] = Counter()
        for targets in probabilities.values():
            totals.update(targets)
        always += sorted(totals, key=lambda token: (-totals[token], token))[:frequent]
        self.always = torch.tensor(always)
        self.vocab_size = config.decoder_vocab_size or config.vocab_size
        self.table = torch.full((config.vocab_size, best + 1), self.padding)  # the targets of each source token
        if config.decoder_vocab_size is None:
            self.table[:, best] = torch.arange(config.vocab_size)
        for source, targets in probabilities.items():
            ranked = sorted(targets, key=lambda token: (-targets[token], token))[:best]
            self.table[source, : len(ranked)] = torch.tensor(ranked)

    def allowed(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Whether a sentence may have a token: `(sentences, source_length)` twice → `(sentences, vocab_size)`."""
        targets = self.table[input_ids.cpu()].masked_fill_(attention_mask.cpu()[..., None] == 0, self.padding)
        allowed = torch.zeros(len(input_ids), self.vocab_size, dtype=torch.bool)
        allowed[:, self.always] = True
        return allowed.scatter_(1, targets.flatten(1), True).to(input_ids.device)

    def fingerprint(self) -> str:
        """SHA-256 of all that decides `allowed`."""
        return hashlib.sha256(self.always.numpy().tobytes() + self.table.numpy().tobytes()).hexdigest()


class ShortlistState:
    """A batch of which the sentences have their own tokens alone; see `decoder.DecoderState` and `SupportsSelect`."""

    def __init__(self, state: SupportsSelect, allowed: torch.Tensor):
        self.state, self.allowed = state, allowed  # (sentences, vocab_size)
        self.attention: torch.Tensor | None = None

    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        logits = self.state(tokens).unflatten(0, tokens.shape)  # (sentences, beams, vocab_size)
        self.attention = self.state.attention
        return logits.masked_fill(~self.allowed[:, None], -torch.inf).flatten(0, 1)

    def reorder(self, beam_indices: torch.Tensor) -> None:
        self.state.reorder(beam_indices)

    def select(self, batch_indices: torch.Tensor) -> None:
        self.state.select(batch_indices)
        self.allowed = self.allowed[batch_indices]


class ShortlistDecoder:
    """A `Decoder` whose sentences have the tokens of a shortlist alone, among which their probabilities sum to 1.

    The native engine computes the logits of the batch's tokens only. Other engines compute all.
    """

    def __init__(self, decoder: Decoder, shortlist: Shortlist):
        self.decoder, self.shortlist, self.engine = decoder, shortlist, decoder.engine

    @property
    def parallel_batches(self) -> int:
        return self.decoder.parallel_batches

    def encode(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> ModelOutput:
        """The source itself, which `begin` needs and encodes."""
        return ModelOutput(last_hidden_state=input_ids, attention_mask=attention_mask)

    def begin(
        self,
        encoder_outputs: Any,
        attention_mask: torch.Tensor | None,
        max_length: int,
        beams: int,
        output_attentions: bool = False,
    ) -> DecoderState:
        """As `Decoder.begin`, with the output of `encode`.

        Raises:
            ValueError: a decoder whose sentences cannot leave the batch.
        """
        source = encoder_outputs[0]
        mask = torch.ones_like(source) if attention_mask is None else attention_mask
        allowed = self.shortlist.allowed(source, mask)
        arguments = self.decoder.encode(source, mask), mask, max_length, beams, output_attentions
        if isinstance(self.decoder, NativeDecoder | NativeRecurrentDecoder):
            return self.decoder.begin(*arguments, allowed=allowed)
        state = self.decoder.begin(*arguments)
        if not isinstance(state, SupportsSelect):
            raise ValueError("a shortlist is for models of this package, without adapters or hooks: merge them")
        return ShortlistState(state, allowed)


def read_shortlist(
    path: str | Path, model: Any, tokenizer: Any, frequent: int = FREQUENT, best: int = BEST
) -> Shortlist:
    """The shortlists of a lexical table; lines with a token that the vocabulary does not have are left out.

    Raises:
        ValueError: a model of another package; a line that is not `target source probability`, or has one below 0 or
            NaN; a file in which no line has tokens of the vocabulary.
    """
    if not isinstance(model, BaseForConditionalGeneration):
        raise ValueError(f"a shortlist is for models of this package, not for model_type={model.config.model_type!r}")
    sources = tokenizer.get_vocab()
    targets = (getattr(tokenizer, TARGET_TOKENIZER, None) or tokenizer).get_vocab()
    probabilities: dict[int, dict[int, float]] = defaultdict(dict)
    for number, line in enumerate(read_lines(path), start=1):
        try:
            target, source, probability = FIELD.findall(line)
            if not (value := float(probability)) >= 0:
                raise ValueError
        except ValueError:
            raise ValueError(f"{path}, line {number}: {line!r} is not 'target source probability'") from None
        if source in sources and target in targets:
            probabilities[sources[source]][targets[target]] = value
    if not probabilities:
        raise ValueError(f"{path} has no pair of tokens of this model: make it with `vanilla-transformer shortlist`")
    return Shortlist(probabilities, model, frequent, best)


def lexical_table(rows: Iterable[dict[str, str]], tokenizer: Any, best: int = BEST) -> Iterator[tuple[str, str, float]]:
    """`target source probability` of tokens: their share of the links of the source token, the `best` of each.

    Words are linked by sure and possible links, and so are all of their tokens.

    Args:
        rows: `read_aligned`'s, with alignments.
    """
    counts: dict[int, Counter[int]] = defaultdict(Counter)
    rows = iter(rows)
    while chunk := list(islice(rows, CHUNK)):
        sides = [[row[name] for row in chunk] for name in ("source", "target")]
        tokens = [_tokens_of_words(tokenizer, texts, bool(side)) for side, texts in enumerate(sides)]
        for row, source, target in zip(chunk, *tokens, strict=True):
            for i, j in parse_alignment(row["alignments"], row["source"], row["target"]).possible:
                for token in source[i]:
                    counts[token].update(target[j])
    target_tokenizer = getattr(tokenizer, TARGET_TOKENIZER, None) or tokenizer
    for source, targets in sorted(counts.items()):
        name, total = tokenizer.convert_ids_to_tokens(source), targets.total()
        for target, count in sorted(targets.items(), key=lambda item: (-item[1], item[0]))[:best]:
            yield target_tokenizer.convert_ids_to_tokens(target), name, count / total


def _tokens_of_words(tokenizer: Any, texts: list[str], is_target: bool) -> Iterator[dict[int, list[int]]]:
    """For each text, the tokens that have characters of each of its words."""
    for ids, words in zip(*tokenize_words(tokenizer, texts, is_target), strict=True):
        found: dict[int, list[int]] = defaultdict(list)
        for token, own in zip(ids, words, strict=True):
            for word in own:
                found[word].append(token)
        yield found
