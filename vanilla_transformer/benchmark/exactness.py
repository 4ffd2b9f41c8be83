# SPDX-License-Identifier: Apache-2.0
"""Whether fast decoding is exact: against transformers' search, teacher forcing, and itself in other batches."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from vanilla_transformer.benchmark.configuration import DecodingConfig
from vanilla_transformer.benchmark.systems import Batch, torch_system
from vanilla_transformer.decoder import Decoder
from vanilla_transformer.generation import ALPHA, BEAMS, length_penalty
from vanilla_transformer.inference.native.engine import Engine, fast_decoder
from vanilla_transformer.inference.translation import generate

BATCH_SIZES = (1, 7, 64)  # sentences


def check_exactness(
    model: Any,
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
    fast = fast_decoder(model.eval(), engine=engine)
    encoded: Any = tokenizer([line for line in lines if line.strip()])["input_ids"]
    batches = _batches(encoded, BATCH_SIZES[-1])
    results: dict[str, Any] = {"sentences": len(encoded)}

    def decode(decoder: Decoder | None, batches: list[Batch], beams: int, **options: Any) -> list[list[int]]:
        search = DecodingConfig(beams=beams, alpha=ALPHA, length_penalty=1.0, early_stopping=False)
        with torch_system(model, decoder, batches, search, **options) as decode_first:
            return decode_first(len(batches))

    def compare(result: str, title: str, *decoded: list[list[int]]) -> None:
        results[result] = sum(all(target == targets[0] for target in targets) for targets in zip(*decoded, strict=True))
        show(f"{title}: {results[result]} of {len(encoded)}")

    for name, beams in (("beams_as_transformers", BEAMS), ("greedy_as_transformers", 1)):
        ours = decode(fast, batches, beams, rule="transformers")
        compare(name, name.replace("_", " "), decode(None, batches, beams), ours)
    order = torch.randperm(len(encoded)).tolist()
    shuffled = decode(fast, _batches([encoded[row] for row in order], BATCH_SIZES[-1]), BEAMS)
    by_batch_size = [decode(fast, _batches(encoded, size), BEAMS) for size in BATCH_SIZES[:-1]]
    by_batch_size.append([target for _, target in sorted(zip(order, shuffled, strict=True))])
    compare("batches", f"the same in batches of {', '.join(map(str, BATCH_SIZES))}", *by_batch_size)

    differences = [difference for batch in batches for difference in _score_differences(model, tokenizer, fast, batch)]
    results |= {"scores": len(differences), "score_difference": max(differences, default=0.0)}
    show(f"largest difference of {results['scores']} scores from teacher forcing: {results['score_difference']:.1e}")
    return results


def _batches(sources: list[list[int]], size: int) -> list[Batch]:
    max_new_tokens = max(map(len, sources), default=0) + 50
    return [Batch(sources[start : start + size], max_new_tokens) for start in range(0, len(sources), size)]


@torch.inference_mode()
def _score_differences(model: Any, tokenizer: Any, decoder: Decoder, batch: Batch) -> list[float]:
    """How far the score of each hypothesis of the paper's search is from that of one forward pass."""
    inputs = tokenizer.pad({"input_ids": batch.sources}, return_tensors="pt")
    options = {
        "max_new_tokens": batch.max_new_tokens,
        "num_beams": BEAMS,
        "alpha": ALPHA,
        "num_return_sequences": BEAMS,
    }
    found = generate(model, inputs, decoder, options)
    targets = found.sequences  # (batch * beams, target_length)
    inputs = {name: tensor.repeat_interleave(BEAMS, dim=0) for name, tensor in inputs.items()}
    logits = model(**inputs, decoder_input_ids=targets[:, :-1]).logits.log_softmax(dim=-1)
    chosen = logits.gather(2, targets[:, 1:, None])[..., 0]  # (batch * beams, target_length - 1)
    is_end = targets[:, 1:] == model.generation_config.eos_token_id
    is_target = is_end.cumsum(dim=1) - is_end.int() == 0  # up to the first EOS
    expected = (chosen * is_target).sum(dim=1) / length_penalty(is_target.sum(dim=1), ALPHA)
    exists = found.sequences_scores.isfinite()
    return (expected - found.sequences_scores)[exists].abs().tolist()
