# SPDX-License-Identifier: Apache-2.0
"""A trained model on a test set: every system at the batch size that suits it best."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from vanilla_transformer.benchmark.baselines import check_baseline_supports
from vanilla_transformer.benchmark.configuration import RealConfig, TimingConfig
from vanilla_transformer.benchmark.systems import Batch, Decoding, open_systems
from vanilla_transformer.benchmark.timing import Measurement, measure_in_turns
from vanilla_transformer.data.corpus import read_lines
from vanilla_transformer.data.tokenizer import load_tokenizer
from vanilla_transformer.inference.model_folder import load_model_folder


def measure_real(
    settings: RealConfig,
    timing: TimingConfig,
    names: list[str],
    device: torch.device,
    on_progress: Callable[[str], None],
) -> dict[str, Any]:
    """Translate the whole file with every system at every batch size, and score the translations.

    Args:
        timing: its `repeats` are replaced by those of the section `real`.
        names: systems that `build_system` knows.
        on_progress: called with a line for each batch size.

    Returns:
        `sentences`, `source_tokens` and `results`. These have for each system, at its fastest batch size: `batch_size`,
        `seconds` of each round, `tokens_per_second`, `sentences_per_second`, `bleu` and `bleu_signature`; and
        `by_batch_size`, the sentences per second of every batch size.

    Raises:
        FileNotFoundError: no such model or file.
        ValueError: source and reference differ in length; a model that the baselines do not support.
    """
    # Not at the top: the synthetic part does not need sacrebleu.
    from vanilla_transformer.evaluation.translation_quality import score_translations

    assert settings.model is not None
    assert settings.source is not None
    assert settings.reference is not None
    lines, references = list(read_lines(settings.source)), list(read_lines(settings.reference))
    if len(lines) != len(references) or not lines:
        raise ValueError(f"{settings.source} has {len(lines)} lines and {settings.reference} {len(references)}")
    model, tokenizer = load_model_folder(settings.model, device), load_tokenizer(settings.model)
    check_baseline_supports(model.config)
    sources = tokenizer(lines)["input_ids"]
    order = sorted(range(len(sources)), key=lambda i: -len(sources[i]))
    max_length = max(map(len, sources)) + settings.max_tokens_beyond_source + 1  # and the start token
    decoding = Decoding(
        settings.beams,
        is_fixed_length=False,
        alpha=settings.alpha,
        length_penalty=settings.length_penalty,
        early_stopping=settings.early_stopping,
    )
    timing = replace(timing, repeats=settings.repeats)
    rates: dict[str, dict[int, float]] = {name: {} for name in names}
    fastest: dict[str, tuple[int, Measurement]] = {}
    with open_systems(names, model, max_length) as (systems, _):
        for batch_size in settings.batch_sizes:
            batches = _batches([sources[i] for i in order], batch_size, settings.max_tokens_beyond_source)
            for name, measurement in measure_in_turns(systems, batches, decoding, timing).items():
                rates[name][batch_size] = len(lines) / measurement.median
                if rates[name][batch_size] == max(rates[name].values()):
                    fastest[name] = batch_size, measurement
            shown = ", ".join(f"{name} {by_batch_size[batch_size]:,.1f}" for name, by_batch_size in rates.items())
            on_progress(f"real sentences, batches of {batch_size}: {shown} sentences/s")
    results = {}
    for name, (batch_size, measurement) in fastest.items():
        texts = dict(zip(order, tokenizer.batch_decode(measurement.targets, skip_special_tokens=True), strict=True))
        score = score_translations([texts[i] for i in range(len(lines))], references)
        results[name] = {
            "batch_size": batch_size,
            "seconds": measurement.seconds,
            "tokens_per_second": sum(map(len, measurement.targets)) / measurement.median,
            "sentences_per_second": rates[name][batch_size],
            "by_batch_size": rates[name],
            "bleu": score["bleu"],
            "bleu_signature": score["bleu_signature"],
        }
    return {"sentences": len(lines), "source_tokens": sum(map(len, sources)), "results": results}


def _batches(sources: list[list[int]], size: int, max_tokens_beyond_source: int) -> list[Batch]:
    parts = [sources[i : i + size] for i in range(0, len(sources), size)]
    return [Batch(part, max(map(len, part)) + max_tokens_beyond_source) for part in parts]
