# SPDX-License-Identifier: Apache-2.0
"""Time and quality of decoding with a shortlist, beside the same without.

    python -m tests.inference.shortlist_speed MODEL TABLE SOURCE REFERENCE [ALPHA [BATCH_TOKENS,…]]
    python -m tests.inference.shortlist_speed base

Runs alternate; times are medians, in seconds of the CPU, on one thread. "base" is the benchmark's base model of 37,000
types, with random weights: batches of 1 and 32 sentences of 20 tokens, of which each may have 640 target tokens and all
together as many as captions of Multi30k have (640 and 3,000), and targets of at most 30.
"""

import statistics
import sys
import time
from collections.abc import Callable
from functools import partial

import torch
from sacrebleu.metrics.bleu import BLEU

from vanilla_transformer.benchmark.random_model import random_model, random_sources
from vanilla_transformer.configuration_vanilla_transformer import VanillaTransformerConfig
from vanilla_transformer.data.corpus import read_lines
from vanilla_transformer.inference.native.transformer import NativeDecoder
from vanilla_transformer.inference.shortlist import Shortlist, ShortlistDecoder, read_shortlist
from vanilla_transformer.inference.translation import generate
from vanilla_transformer.inference.translator import Translator

ROUNDS = 3
TYPES = 37000
PER_SENTENCE, PER_BATCH = 640, {1: 640, 32: 3000}


class RandomShortlist(Shortlist):
    """Random tokens of a given number for each sentence, and for all sentences together."""

    def __init__(self, per_batch: int):
        self.tokens = torch.randperm(TYPES)[:per_batch]

    def allowed(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        allowed = torch.zeros(len(input_ids), TYPES, dtype=torch.bool)
        for row in allowed:
            row[self.tokens[torch.randperm(len(self.tokens))[:PER_SENTENCE]]] = True
        return allowed


def alternate(without: Callable[[], object], within: Callable[[], object]) -> tuple[float, float]:
    """Median seconds of both."""
    times: tuple[list[float], list[float]] = ([], [])
    for round in range(1 + ROUNDS):
        for function, own in zip((without, within), times, strict=True):
            start = time.process_time()
            function()
            if round:  # the first warms up
                own.append(time.process_time() - start)
    return statistics.median(times[0]), statistics.median(times[1])


def trained(
    model: str, table: str, source: str, reference: str, alpha: str = "0.6", batches: str = "1024,8192"
) -> None:
    translator = Translator.from_pretrained(model, device="cpu")
    short = ShortlistDecoder(translator.decoder, read_shortlist(table, translator.model, translator.tokenizer))
    with_shortlist = Translator(translator.model, translator.tokenizer, short)
    lines, references = (list(read_lines(path)) for path in (source, reference))
    print("| beams | batch tokens | BLEU without | with | the same | seconds without | with | ratio |")
    print("|---|---|---|---|---|---|---|---|")
    for beams in (1, 5):
        for tokens in map(int, batches.split(",")):
            options = {"num_beams": beams, "alpha": float(alpha), "max_batch_tokens": tokens}
            found = [each.translate(lines, **options) for each in (translator, with_shortlist)]
            before, after = alternate(
                *(partial(each.translate, lines, **options) for each in (translator, with_shortlist)),
            )
            scores = " | ".join(f"{BLEU().corpus_score(texts, [references]).score:.2f}" for texts in found)
            same = sum(first == second for first, second in zip(*found, strict=True))
            times = f"{before:.2f} | {after:.2f} | {before / after:.2f}"
            print(f"| {beams} | {tokens} | {scores} | {same} | {times} |", flush=True)


def base(precision: str = "float32") -> None:
    model = random_model(VanillaTransformerConfig(vocab_size=TYPES, d_model=512, d_ff=2048, num_layers=6, num_heads=8))
    model.generation_config.update(pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1)
    plain = NativeDecoder(model, "int8" if precision == "int8" else "float32")
    print("| sentences | beams | seconds without | with | ratio |\n|---|---|---|---|---|")
    for sentences, per_batch in PER_BATCH.items():
        ids = torch.tensor(random_sources(TYPES, sentences, 20))
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        decoders = plain, ShortlistDecoder(plain, RandomShortlist(per_batch))
        for beams in (1, 5):
            options = {"num_beams": beams, "max_new_tokens": 30, "num_return_sequences": 1}
            before, after = alternate(
                *(partial(generate, model, inputs, decoder, options) for decoder in decoders),
            )
            print(f"| {sentences} | {beams} | {before:.2f} | {after:.2f} | {before / after:.2f} |", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.manual_seed(1)
    base(*sys.argv[2:]) if sys.argv[1] == "base" else trained(*sys.argv[1:])
