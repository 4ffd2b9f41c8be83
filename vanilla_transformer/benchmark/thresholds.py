# SPDX-License-Identifier: Apache-2.0
"""Ratios of speeds, and whether they reach the thresholds; computed from the results alone."""

from statistics import geometric_mean
from typing import Any

from vanilla_transformer.benchmark.configuration import ThresholdsConfig
from vanilla_transformer.benchmark.systems import CTRANSLATE2, FAST, GENERATE, MARIAN

MEAN, EVERY = "geometric mean", "every case"


def ratios(synthetic: list[dict[str, Any]], name: str, baseline: str) -> list[float] | None:
    """Tokens per second of a system over a baseline's, in each case; `None`: one of the two was skipped."""
    results = [case["results"] for size in synthetic for case in size["cases"]]
    if any(name not in result or baseline not in result for result in results):
        return None
    return [result[name]["tokens_per_second"] / result[baseline]["tokens_per_second"] for result in results]


def real_ratio(real: dict[str, Any] | None, name: str, baseline: str) -> float | None:
    """Sentences per second of a system over a baseline's, each at its best batch size; `None` as in `ratios`."""
    if real is None or name not in real["results"] or baseline not in real["results"]:
        return None
    return real["results"][name]["sentences_per_second"] / real["results"][baseline]["sentences_per_second"]


def exact_enough(real: dict[str, Any] | None, thresholds: ThresholdsConfig) -> set[str]:
    """Precisions of the fast decoder whose BLEU is known to be within `thresholds.exact_bleu` of float32's."""
    if real is None:
        return {"float32"}
    bleu = {precision: real["results"][name]["bleu"] for precision, name in FAST.items() if name in real["results"]}
    return {precision for precision, score in bleu.items() if abs(score - bleu["float32"]) <= thresholds.exact_bleu}


def check_thresholds(
    synthetic: list[dict[str, Any]], real: dict[str, Any] | None, thresholds: ThresholdsConfig
) -> list[dict[str, Any]]:
    """For each threshold `ratio` (its description), `required`, `measured` and `is_met`.

    The last two are `None` if a system or the real file was skipped.

    Args:
        synthetic: from `measure_synthetic`, one for each size.
        real: from `measure_real`; `None`: this part was skipped.
    """
    fast, ctranslate2 = FAST["float32"], CTRANSLATE2["float32"]
    found = []
    for name, baseline, how, required in (
        (fast, MARIAN, MEAN, thresholds.float32_marian_mean),
        (fast, MARIAN, EVERY, thresholds.float32_marian_every),
        (fast, ctranslate2, MEAN, thresholds.float32_ctranslate2_mean),
        (fast, ctranslate2, EVERY, thresholds.float32_ctranslate2_every),
        (GENERATE, MARIAN, EVERY, thresholds.generate_marian_every),
    ):
        each = ratios(synthetic, name, baseline)
        measured = None if each is None else geometric_mean(each) if how == MEAN else min(each)
        found.append(_threshold(f"{name} / {baseline}: {how}", required, measured))
    found.append(_best_precision(synthetic, real, thresholds))
    for baseline, required in ((MARIAN, thresholds.real_marian), (ctranslate2, thresholds.real_ctranslate2)):
        description = f"{fast} / {baseline}: real sentences, best batch of each"
        found.append(_threshold(description, required, real_ratio(real, fast, baseline)))
    return found


def _best_precision(
    synthetic: list[dict[str, Any]], real: dict[str, Any] | None, thresholds: ThresholdsConfig
) -> dict[str, Any]:
    """The fastest exact enough precision; a faster one of unknown exactness leaves the threshold open."""
    baseline, required = CTRANSLATE2["int8"], thresholds.best_ctranslate2_int8_mean
    each = {precision: ratios(synthetic, name, baseline) for precision, name in FAST.items()}
    means = {precision: geometric_mean(found) for precision, found in each.items() if found is not None}
    description = f"best exact enough precision / {baseline}: {MEAN}"
    if not means:
        return _threshold(description, required, None)
    best = max(exact_enough(real, thresholds) & means.keys(), key=means.__getitem__)
    if real is not None:
        return _threshold(f"{description} ({best})", required, means[best])
    fastest = max(means, key=means.__getitem__)
    if means[best] < required <= means[fastest]:
        unknown = f"{fastest}: {means[fastest]:.2f}, its exactness unknown without a real file"
        return _threshold(f"{description} ({unknown})", required, None)
    return _threshold(f"{description} ({best}; exactness of others unknown without a real file)", required, means[best])


def _threshold(ratio: str, required: float, measured: float | None) -> dict[str, Any]:
    is_met = None if measured is None else measured >= required
    return {"ratio": ratio, "required": required, "measured": measured, "is_met": is_met}
