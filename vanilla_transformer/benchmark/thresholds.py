# SPDX-License-Identifier: Apache-2.0
"""Ratios of speeds, and whether they reach the thresholds; computed from the results alone."""

from statistics import geometric_mean
from typing import Any

from vanilla_transformer.benchmark.configuration import ThresholdsConfig
from vanilla_transformer.benchmark.systems import CTRANSLATE2, FAST, GENERATE, MARIAN

MEAN, EVERY, REAL = "geometric mean", "every case", "real sentences, best batch of each"


def ratios(cases: list[dict[str, Any]], name: str, baseline: str) -> list[float]:
    """Sentences per second of a system over a baseline's, in each of `cases` that has `results` of both."""
    both = [case["results"] for case in cases if {name, baseline} <= case["results"].keys()]
    return [results[name]["sentences_per_second"] / results[baseline]["sentences_per_second"] for results in both]


def exact_enough(real: dict[str, Any] | None, thresholds: ThresholdsConfig) -> set[str]:
    """Precisions of the fast decoder whose BLEU is known to be within `thresholds.exact_bleu` of float32's."""
    if real is None:
        return {"float32"}
    bleu = {precision: real["results"][name]["bleu"] for precision, name in FAST.items() if name in real["results"]}
    return {precision for precision, score in bleu.items() if abs(score - bleu["float32"]) <= thresholds.exact_bleu}


def check_thresholds(
    cases: list[dict[str, Any]], real: dict[str, Any] | None, thresholds: ThresholdsConfig
) -> list[dict[str, Any]]:
    """For each threshold `ratio` (its description), `required`, `measured` and `is_met`.

    The last two are `None` if a system or the real file was skipped.

    Args:
        cases: of all sizes, as in `benchmark_decoding`.
        real: from `measure_real`; `None`: this part was skipped.
    """
    fast, ctranslate2 = FAST["float32"], CTRANSLATE2["float32"]
    return [
        _compare(cases, fast, MARIAN, MEAN, thresholds.float32_marian_mean),
        _compare(cases, fast, MARIAN, EVERY, thresholds.float32_marian_every),
        _compare(cases, fast, ctranslate2, MEAN, thresholds.float32_ctranslate2_mean),
        _compare(cases, fast, ctranslate2, EVERY, thresholds.float32_ctranslate2_every),
        _compare(cases, GENERATE, MARIAN, EVERY, thresholds.generate_marian_every),
        _best_precision(cases, real, thresholds),
        _compare([real] if real else [], fast, MARIAN, REAL, thresholds.real_marian),
        _compare([real] if real else [], fast, ctranslate2, REAL, thresholds.real_ctranslate2),
    ]


def _compare(cases: list[dict[str, Any]], name: str, baseline: str, how: str, required: float) -> dict[str, Any]:
    found = ratios(cases, name, baseline)
    measured = None if not found else geometric_mean(found) if how == MEAN else min(found)
    return threshold(f"{name} / {baseline}: {how}", required, measured)


def _best_precision(
    cases: list[dict[str, Any]], real: dict[str, Any] | None, thresholds: ThresholdsConfig
) -> dict[str, Any]:
    """The fastest exact enough precision; a faster one of unknown exactness leaves the threshold open."""
    baseline, required = CTRANSLATE2["int8"], thresholds.best_ctranslate2_int8_mean
    each = {precision: ratios(cases, name, baseline) for precision, name in FAST.items()}
    means = {precision: geometric_mean(found) for precision, found in each.items() if found}
    description = f"best exact enough precision / {baseline}: {MEAN}"
    if not means:
        return threshold(description, required, None)
    best = note = max(exact_enough(real, thresholds) & means.keys(), key=means.__getitem__)
    measured: float | None = means[best]
    if real is None:
        note = f"{best}; exactness of others unknown without a real file"
        fastest = max(means, key=means.__getitem__)
        if means[best] < required <= means[fastest]:
            note, measured = f"{fastest}: {means[fastest]:.2f}, its exactness unknown without a real file", None
    return threshold(f"{description} ({note})", required, measured)


def threshold(ratio: str, required: float, measured: float | None) -> dict[str, Any]:
    """A row of `check_thresholds`."""
    is_met = None if measured is None else measured >= required
    return {"ratio": ratio, "required": required, "measured": measured, "is_met": is_met}
