# SPDX-License-Identifier: Apache-2.0
"""Whether fast decoding is exact: against transformers' search, teacher forcing, and itself in other batches."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from vanilla_transformer.generation import beam_search, length_penalty
from vanilla_transformer.inference.native.engine import Engine, fast_decoder
from vanilla_transformer.inference.translate import generate

BATCH_SIZES = (1, 7, 64)  # sentences
BEAMS, ALPHA = 4, 0.6
PAPER = {"num_beams": BEAMS, "alpha": ALPHA}
TRANSFORMERS = {  # result → options of a search with transformers' length penalty
    "beams_as_transformers": {"num_beams": BEAMS, "length_penalty": 1.0, "early_stopping": False},
    "greedy_as_transformers": {"num_beams": 1, "length_penalty": None, "early_stopping": None},
}


def check_exactness(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    lines: Sequence[str],
    show: Callable[[str], None],
    engine: Engine = "auto",
) -> dict[str, Any]:
    """Decode the lines in several ways that must agree, in the precision of the model.

    Args:
        engine: of the fast decoder, as for `fast_decoder`.

    Returns:
        `sentences`; how many of them get the same tokens from fast decoding and from transformers' search
        (`beams_as_transformers`, `greedy_as_transformers`) and in batches of 1, 7 and 64 (`batches`; the last in
        another order); and `score_difference`, the largest between the score of a hypothesis and its score by teacher
        forcing, over `scores` hypotheses.
    """
    decoder = _Decoder(model.eval(), tokenizer, [line for line in lines if line.strip()], engine)
    count = len(decoder.sources)
    results: dict[str, Any] = {"sentences": count}
    max_new_tokens = max(map(len, decoder.sources), default=0) + 50
    for name, search in TRANSFORMERS.items():
        options: Any = {**search, "max_new_tokens": max_new_tokens}
        expected = decoder.decode(64, fast=False, **options)
        results[name] = _count_equal(expected, decoder.decode(64, **options, rule="transformers"))
        show(f"{name.replace('_', ' ')}: {results[name]} of {count}")

    orders = [range(count), range(count), torch.randperm(count).tolist()]
    by_batch_size = [decoder.decode(size, order, **PAPER) for size, order in zip(BATCH_SIZES, orders, strict=True)]
    results["batches"] = _count_equal(*by_batch_size)
    show(f"batches of {', '.join(map(str, BATCH_SIZES))}: {results['batches']} of {count} the same in all")

    results["scores"], results["score_difference"] = decoder.score_difference()
    show(f"largest difference of {results['scores']} scores from teacher forcing: {results['score_difference']:.1e}")
    return results


def _count_equal(*decoded: list[tuple[int, ...]]) -> int:
    return sum(len(set(targets)) == 1 for targets in zip(*decoded, strict=True))


class _Decoder:
    """A model, its fast decoder, and the token ids of its sources."""

    def __init__(self, model: Any, tokenizer: Any, lines: list[str], engine: Engine):
        self.model, self.tokenizer, self.sources = model, tokenizer, tokenizer(lines)["input_ids"]
        self.fast_options = {"custom_generate": beam_search, "decoder": fast_decoder(model, engine=engine)}
        self.end = model.generation_config.eos_token_id

    def batch(self, rows: Sequence[int]) -> dict[str, torch.Tensor]:
        return self.tokenizer.pad({"input_ids": [self.sources[i] for i in rows]}, return_tensors="pt")

    def decode(
        self, size: int, order: Sequence[int] | None = None, *, fast: bool = True, **options
    ) -> list[tuple[int, ...]]:
        """Targets without padding, in the order of the sources.

        Args:
            size: sentences in a batch.
            order: of decoding; `None`: that of the sources.
            fast: by our search and the fast decoder, else by transformers' search.
        """
        order, targets = range(len(self.sources)) if order is None else order, {}
        options |= self.fast_options if fast else {}
        for start in range(0, len(order), size):
            rows = order[start : start + size]
            found = generate(self.model, self.batch(rows), options).sequences.tolist()
            targets |= dict(zip(rows, map(self._without_padding, found), strict=True))
        return [targets[i] for i in range(len(self.sources))]

    @torch.inference_mode()
    def score_difference(self) -> tuple[int, float]:
        """The number of hypotheses, and the largest difference of their scores from those of one forward pass."""
        count, largest = 0, 0.0
        options = {**PAPER, **self.fast_options, "num_return_sequences": BEAMS}
        for start in range(0, len(self.sources), 64):
            batch = self.batch(range(start, min(start + 64, len(self.sources))))
            found = generate(self.model, batch, options)
            targets = found.sequences  # (batch * beams, target_length)
            inputs = {name: tensor.repeat_interleave(BEAMS, dim=0) for name, tensor in batch.items()}
            logits = self.model(**inputs, decoder_input_ids=targets[:, :-1]).logits.log_softmax(dim=-1)
            chosen = logits.gather(2, targets[:, 1:, None])[..., 0]  # (batch * beams, target_length - 1)
            lengths = torch.tensor([len(self._without_padding(target)) - 1 for target in targets.tolist()])
            is_target = torch.arange(chosen.shape[1]) < lengths[:, None]
            expected = (chosen * is_target).sum(dim=1) / length_penalty(lengths, ALPHA)
            exists = found.sequences_scores.isfinite()
            difference = (expected - found.sequences_scores)[exists].abs().max().item()
            count, largest = count + int(exists.sum()), max(largest, difference)
        return count, largest

    def _without_padding(self, target: list[int]) -> tuple[int, ...]:
        if self.end in target:
            return tuple(target[: target.index(self.end) + 1])
        while target[-1] == self.model.config.pad_token_id:  # a target that reached the limit has no end
            target = target[:-1]
        return tuple(target)
