# SPDX-License-Identifier: Apache-2.0
"""The second part: a trained model on a file of real sentences, everyone at the batch size that suits them best."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from vanilla_transformer.benchmark.baselines import check_can_be_a_peer, write_ctranslate2
from vanilla_transformer.benchmark.configuration import RealConfig, TimingConfig
from vanilla_transformer.benchmark.systems import Batch, Decoding, make_contender
from vanilla_transformer.benchmark.timing import measure_in_turns
from vanilla_transformer.data.corpus import read_lines
from vanilla_transformer.inference.model_folder import load_model_folder


def measure_sentences(
    settings: RealConfig,
    timing: TimingConfig,
    names: list[str],
    device: torch.device,
    on_progress: Callable[[str], None],
) -> dict[str, Any]:
    """Translate the whole file with every contender at every batch size, and score what came out.

    Args:
        timing: but for its number of rounds, which is the section's own.
        names: of the contenders, as `make_contender` knows them.
        on_progress: called with a line for each batch size.

    Returns:
        `sentences`, `source_tokens` and `results` by contender, each at its fastest batch size: `batch_size`,
        `seconds` of each round, `tokens_per_second`, `sentences_per_second`, `bleu`, and `by_batch_size`, the sentences
        per second of all.

    Raises:
        FileNotFoundError: no such model or file.
        ValueError: source and reference differ in length; a model that no peer can be.
    """
    # Not at the top: the first part does without evaluate and sacrebleu.
    from vanilla_transformer.evaluation.translation_quality import score_translations

    assert settings.model is not None
    assert settings.source is not None
    assert settings.reference is not None
    lines, references = list(read_lines(settings.source)), list(read_lines(settings.reference))
    if len(lines) != len(references) or not lines:
        raise ValueError(f"{settings.source} has {len(lines)} lines and {settings.reference} {len(references)}")
    model = load_model_folder(settings.model, device)
    check_can_be_a_peer(model.config)
    tokenizer = AutoTokenizer.from_pretrained(settings.model)
    sources = tokenizer(lines)["input_ids"]
    order = sorted(range(len(sources)), key=lambda i: -len(sources[i]))
    longest = max(map(len, sources)) + settings.max_tokens_beyond_source + 1  # and the start
    decoding = Decoding(
        settings.beams,
        is_exact=False,
        alpha=settings.alpha,
        length_penalty=settings.length_penalty,
        early_stopping=settings.early_stopping,
    )
    timing = TimingConfig(repeats=settings.repeats, pause=timing.pause, fill=timing.fill)
    results: dict[str, dict[str, Any]] = {name: {"sentences_per_second": 0.0, "by_batch_size": {}} for name in names}
    targets = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "ctranslate2"
        if any(name.startswith("CTranslate2") for name in names):
            write_ctranslate2(model, folder, longest)
        contenders = [make_contender(name, lambda: model, folder, longest) for name in names]
        for batch_size in settings.batch_sizes:
            batches = _batches([sources[i] for i in order], batch_size, settings.max_tokens_beyond_source)
            for name, one in measure_in_turns(contenders, batches, decoding, timing).items():
                rate, result = len(lines) / one.median, results[name]
                result["by_batch_size"][batch_size] = rate
                if rate > result["sentences_per_second"]:
                    tokens = sum(map(len, one.targets))
                    result |= {"batch_size": batch_size, "seconds": one.seconds, "sentences_per_second": rate}
                    result |= {"tokens_per_second": tokens / one.median}
                    targets[name] = one.targets
                    results[name] = result
            rates = (f"{name} {result['by_batch_size'][batch_size]:,.1f}" for name, result in results.items())
            on_progress(f"real sentences, {batch_size} at once: {', '.join(rates)} sentences/s")
    for name, found in targets.items():
        texts = [""] * len(lines)
        for i, text in zip(order, tokenizer.batch_decode(found, skip_special_tokens=True), strict=True):
            texts[i] = text
        score = score_translations(texts, references)
        results[name] |= {"bleu": score["bleu"], "bleu_signature": score["bleu_signature"]}
    return {"sentences": len(lines), "source_tokens": sum(map(len, sources)), "results": results}


def _batches(sources: list[list[int]], size: int, beyond: int) -> list[Batch]:
    parts = [sources[i : i + size] for i in range(0, len(sources), size)]
    return [Batch(part, max(map(len, part)) + beyond) for part in parts]
