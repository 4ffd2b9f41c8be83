# SPDX-License-Identifier: Apache-2.0
"""A trained model on a test set: every system at the batch size that suits it best."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from vanilla_transformer.benchmark.configuration import RealConfig, TimingConfig
from vanilla_transformer.benchmark.systems import Batch, measure_decoding, open_systems, speeds
from vanilla_transformer.benchmark.timing import Measurement
from vanilla_transformer.data.corpus import CorpusConfig, load_references
from vanilla_transformer.data.tokenizer import load_tokenizer
from vanilla_transformer.evaluation.translation_quality import score_translations
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
        its `speeds`, `bleu` and `bleu_signature`; and `by_batch_size`, the sentences per second of every batch size.

    Raises:
        FileNotFoundError: no such model or file.
        ValueError: source and reference differ in length; a model that MarianMT cannot have.
    """
    assert settings.model is not None
    lines, references = load_references(CorpusConfig(source=settings.source, target=settings.reference))
    model, tokenizer = load_model_folder(settings.model, device), load_tokenizer(settings.model)
    sources: list[list[int]] = tokenizer(lines)["input_ids"]
    order = sorted(range(len(sources)), key=lambda i: -len(sources[i]))
    max_length = len(sources[order[0]]) + settings.max_tokens_beyond_source + 1  # and the start token
    found: dict[str, dict[int, Measurement]] = {name: {} for name in names}
    with open_systems(names, model, max_length) as (systems, _):
        for size in settings.batch_sizes:
            parts = [[sources[i] for i in order[start : start + size]] for start in range(0, len(order), size)]
            batches = [Batch(part, len(part[0]) + settings.max_tokens_beyond_source) for part in parts]
            measured = measure_decoding(systems, batches, settings, replace(timing, repeats=settings.repeats))
            for name, measurement in measured.items():
                found[name][size] = measurement
            shown = ", ".join(f"{name} {len(lines) / measured[name].median:,.1f}" for name in names)
            on_progress(f"real sentences, batches of {size}: {shown} sentences/s")
    results = {}
    for name, by_batch_size in found.items():
        size = min(by_batch_size, key=lambda size: by_batch_size[size].median)
        texts = tokenizer.batch_decode(by_batch_size[size].result, skip_special_tokens=True)
        score = score_translations(texts, [references[i] for i in order])
        results[name] = {
            "batch_size": size,
            **speeds(by_batch_size[size]),
            "by_batch_size": {size: len(lines) / measurement.median for size, measurement in by_batch_size.items()},
            "bleu": score["bleu"],
            "bleu_signature": score["bleu_signature"],
        }
    return {"sentences": len(lines), "source_tokens": sum(map(len, sources)), "results": results}
