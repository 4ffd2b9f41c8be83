# SPDX-License-Identifier: Apache-2.0
"""Ratios of speeds, and whether they reach the bars; computed from the results alone."""

from statistics import geometric_mean
from typing import Any

from vanilla_transformer.benchmark.configuration import BarsConfig
from vanilla_transformer.benchmark.systems import CTRANSLATE2, FAST, GENERATE, MARIAN


def ratios(sizes: list[dict[str, Any]], name: str, peer: str) -> list[float] | None:
    """Tokens per second of a contender over those of another, for each cell; `None`: one of them was left out."""
    results = [cell["results"] for size in sizes for cell in size["cells"]]
    if any(name not in one or peer not in one for one in results):
        return None
    return [one[name]["tokens_per_second"] / one[peer]["tokens_per_second"] for one in results]


def exact_enough(real: dict[str, Any] | None, bars: BarsConfig) -> set[str]:
    """Precisions of the fast loop whose BLEU is within `bars.exact_bleu` of float32's; it alone without a real file."""
    if real is None:
        return {"float32"}
    results = real["results"]
    return {
        precision
        for precision, name in FAST.items()
        if name in results and abs(results[name]["bleu"] - results[FAST["float32"]]["bleu"]) <= bars.exact_bleu
    }


def judge(sizes: list[dict[str, Any]], real: dict[str, Any] | None, bars: BarsConfig) -> list[dict[str, Any]]:
    """Each bar: `what`, `required`, `measured` and `is_met`; `None` where a contender or the real file was left out.

    Args:
        sizes: as `measure_cells` returns them.
        real: as `measure_sentences` returns it; `None`: that part was left out.
    """
    fast, marian, ctranslate2 = FAST["float32"], MARIAN, CTRANSLATE2["float32"]
    found = [
        _mean(sizes, fast, marian, bars.float32_marian_mean),
        _every(sizes, fast, marian, bars.float32_marian_every),
        _mean(sizes, fast, ctranslate2, bars.float32_ctranslate2_mean),
        _every(sizes, fast, ctranslate2, bars.float32_ctranslate2_every),
        _best(sizes, real, bars),
        _every(sizes, GENERATE, marian, bars.generate_marian_every),
    ]
    for peer, required in ((marian, bars.real_marian), (ctranslate2, bars.real_ctranslate2)):
        ratio = real_ratio(real, fast, peer)
        found.append(_bar(f"{fast} / {peer}: real sentences, best batch of each", required, ratio))
    return found


def real_ratio(real: dict[str, Any] | None, name: str, peer: str) -> float | None:
    """Sentences per second of a contender over those of another, each at its best batch size."""
    if real is None or name not in real["results"] or peer not in real["results"]:
        return None
    return real["results"][name]["sentences_per_second"] / real["results"][peer]["sentences_per_second"]


def _best(sizes: list[dict[str, Any]], real: dict[str, Any] | None, bars: BarsConfig) -> dict[str, Any]:
    """The fastest exact enough precision; what is faster without being known to be exact leaves the bar open."""
    peer, required, exact = CTRANSLATE2["int8"], bars.best_ctranslate2_int8_mean, exact_enough(real, bars)
    found = {precision: ratios(sizes, name, peer) for precision, name in FAST.items()}
    means = {precision: geometric_mean(each) for precision, each in found.items() if each is not None}
    what = f"best exact enough precision / {peer}: geometric mean"
    if not means:
        return _bar(what, required, None)
    best = max(exact & means.keys(), key=lambda precision: means[precision])
    if real is not None:
        return _bar(f"{what} ({best})", required, means[best])
    fastest = max(means, key=lambda precision: means[precision])
    if means[best] < required <= means[fastest]:
        return _bar(f"{what} ({fastest}: {means[fastest]:.2f}, exact by no real file)", required, None)
    return _bar(f"{what} ({best}; no real file says that others are exact)", required, means[best])


def _mean(sizes: list[dict[str, Any]], name: str, peer: str, required: float) -> dict[str, Any]:
    found = ratios(sizes, name, peer)
    return _bar(f"{name} / {peer}: geometric mean", required, None if found is None else geometric_mean(found))


def _every(sizes: list[dict[str, Any]], name: str, peer: str, required: float) -> dict[str, Any]:
    found = ratios(sizes, name, peer)
    return _bar(f"{name} / {peer}: every cell", required, None if found is None else min(found))


def _bar(what: str, required: float, measured: float | None) -> dict[str, Any]:
    return {
        "what": what,
        "required": required,
        "measured": measured,
        "is_met": None if measured is None else measured >= required,
    }
