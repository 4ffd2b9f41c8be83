# SPDX-License-Identifier: Apache-2.0
"""Whether the fast decoding is right: against transformers' search, teacher forcing, and itself in other batches."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from vanilla_transformer.generation import beam_search, length_penalty
from vanilla_transformer.inference.native.engine import Engine, fast_decoder

BATCHES = (1, 7, 64)  # sentences
BEAMS, ALPHA = 4, 0.6


@torch.inference_mode()
def check_exactness(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    lines: Sequence[str],
    show: Callable[[str], None],
    engine: Engine = "auto",
) -> dict[str, Any]:
    """Decode the lines in many ways that must agree, in the precision of the model.

    Args:
        engine: what decodes by the paper's search, as for `fast_decoder`.

    Returns:
        `sentences`, and of them how many are token for token the same: `beams_as_transformers` (transformers' rule of
        length), `greedy_as_transformers`, `batches` (in batches of 1, 7 and 64 sentences, the last in another order);
        `score_difference`, the largest between a reported score and that of one teacher-forced pass, over `scores`
        of them.
    """
    check: Any = _Check(model.eval(), tokenizer, [line for line in lines if line.strip()], engine)
    results: dict[str, Any] = {"sentences": len(check.sources)}
    rule = {"num_beams": BEAMS, "length_penalty": 1.0, "early_stopping": False}
    theirs = check.decode(64, **rule)
    ours = check.decode(64, **rule, custom_generate=beam_search, rule="transformers")
    results["beams_as_transformers"] = _same(theirs, ours)
    show(f"beam {BEAMS}, transformers' rule: {results['beams_as_transformers']} of {len(ours)} as transformers")
    greedy = {"num_beams": 1, "length_penalty": None, "early_stopping": None}
    theirs, ours = check.decode(64, **greedy), check.decode(64, **greedy, custom_generate=beam_search)
    results["greedy_as_transformers"] = _same(theirs, ours)
    show(f"greedy, and one beam: {results['greedy_as_transformers']} of {len(ours)} as transformers")

    paper = {"num_beams": BEAMS, "custom_generate": beam_search, "alpha": ALPHA}
    orders = [range(len(check.sources)), range(len(check.sources)), torch.randperm(len(check.sources)).tolist()]
    found = [check.decode(size, order, **paper) for size, order in zip(BATCHES, orders, strict=True)]
    results["batches"] = sum(len(set(each)) == 1 for each in zip(*found, strict=True))
    show(f"batches of {', '.join(map(str, BATCHES))}: {results['batches']} of {len(check.sources)} the same in all")
    results["scores"], results["score_difference"] = check.score_difference(paper)
    show(f"largest difference of {results['scores']} scores from teacher forcing: {results['score_difference']:.1e}")
    return results


def _same(one: list[tuple[int, ...]], other: list[tuple[int, ...]]) -> int:
    return sum(a == b for a, b in zip(one, other, strict=True))


class _Check:
    """A model and the token ids of its sources."""

    def __init__(self, model: Any, tokenizer: Any, lines: Sequence[str], engine: Engine):
        self.model, self.tokenizer = model, tokenizer
        self.sources = tokenizer(list(lines))["input_ids"]
        self.decoder = fast_decoder(model, "float32", engine)
        self.end = model.generation_config.eos_token_id

    def batch(self, rows: Sequence[int]) -> dict[str, torch.Tensor]:
        return self.tokenizer.pad({"input_ids": [self.sources[i] for i in rows]}, return_tensors="pt")

    def own_options(self, batch: dict[str, torch.Tensor]) -> dict[str, Any]:
        """Of `generate`, for the paper's search."""
        return {"decoder": self.decoder, "encoder_outputs": self.decoder.encode(**batch)}

    def decode(self, size: int, order: Sequence[int] | None = None, **options) -> list[tuple[int, ...]]:
        """Targets without padding, in the order of the sources, whatever the `order` of decoding."""
        order, targets = range(len(self.sources)) if order is None else order, {}
        for start in range(0, len(order), size):
            rows = order[start : start + size]
            # Of the batch for transformers, which knows no other; so for ours where the two are compared.
            limit = {} if "alpha" in options else {"max_new_tokens": max(len(self.sources[i]) for i in rows) + 50}
            batch = self.batch(rows)
            own = self.own_options(batch) if "custom_generate" in options else {}
            found = self.model.generate(**batch, **options, **own, **limit)
            targets |= dict(zip(rows, map(self._until_end, found.tolist()), strict=True))
        return [targets[i] for i in range(len(self.sources))]

    def score_difference(self, options: dict[str, Any]) -> tuple[int, float]:
        """Over all n-best targets: how many, and the largest difference from one forward pass each."""
        count, largest = 0, 0.0
        for start in range(0, len(self.sources), 64):
            rows = range(start, min(start + 64, len(self.sources)))
            batch = self.batch(rows)
            found = self.model.generate(
                **batch,
                **options,
                **self.own_options(batch),
                num_return_sequences=BEAMS,
                return_dict_in_generate=True,
            )
            targets = found.sequences  # (batch * beams, target_length)
            each = {name: tensor.repeat_interleave(BEAMS, dim=0) for name, tensor in batch.items()}
            logits = self.model(**each, decoder_input_ids=targets[:, :-1]).logits.log_softmax(dim=-1)
            chosen = logits.gather(2, targets[:, 1:, None])[..., 0]  # (batch * beams, target_length - 1)
            lengths = torch.tensor([len(self._until_end(target)) - 1 for target in targets.tolist()])
            is_target = torch.arange(chosen.shape[1]) < lengths[:, None]
            expected = (chosen * is_target).sum(dim=1) / length_penalty(lengths, ALPHA)
            exists = found.sequences_scores.isfinite()
            difference = (expected - found.sequences_scores)[exists].abs().max().item()
            count, largest = count + int(exists.sum()), max(largest, difference)
        return count, largest

    def _until_end(self, target: list[int]) -> tuple[int, ...]:
        """Without what fills the row; a target that was cut has no end."""
        if self.end in target:
            return tuple(target[: target.index(self.end) + 1])
        while target[-1] == self.model.config.pad_token_id:
            target = target[:-1]
        return tuple(target)
