# SPDX-License-Identifier: Apache-2.0
"""Scores of several systems with sacreBLEU's paired bootstrap (Koehn 2004)."""

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

from sacrebleu.metrics.base import Metric, Score
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.significance import PairedTest

WORD_ERROR_RATE = "word error rate"


class WordErrorRate(Metric):
    """Share of words, in %, whose pronunciation equals none that the dictionary lists: a metric for sacreBLEU.

    Its statistics are (errors, words) of each word, which its bootstrap adds up over resamples.
    """

    def _preprocess_segment(self, sent: str) -> str:
        return " ".join(sent.split())

    def _extract_reference_info(self, refs: Sequence[str | None]) -> dict[str, Any]:
        return {"listed": {self._preprocess_segment(ref) for ref in refs if ref is not None}}

    def _compute_segment_statistics(self, hypothesis: str, ref_kwargs: dict) -> list[int]:
        return [int(hypothesis not in ref_kwargs["listed"]), 1]

    def _compute_score_from_stats(self, stats: Sequence[Any]) -> Score:
        return Score(WORD_ERROR_RATE, 100 * float(stats[0]) / float(stats[1]))

    def _aggregate_and_compute(self, stats: list[list[Any]]) -> Score:
        return self._compute_score_from_stats([sum(column) for column in zip(*stats, strict=True)])


# name → (metric, whether more is better, unit)
METRICS: dict[str, tuple[type[Metric], bool, str]] = {
    "BLEU": (BLEU, True, "points"),
    WORD_ERROR_RATE: (WordErrorRate, False, "%"),
}


def score_systems(
    metric_name: str, outputs: Mapping[str, Sequence[str]], references: Sequence[Sequence[str]], baseline: str
) -> dict[str, Any]:
    """Score every system, and test each against the baseline on the same 1,000 resamples of the test set.

    Args:
        metric_name: a key of `METRICS`.
        outputs: system → its outputs.
        references: for each output, one reference or several.
        baseline: one of the systems.

    Returns:
        `scores` by system (`score` and `interval`, 95% of the resamples), `paired` (`model`, `baseline`,
        `difference`, `p_value`), and `signature`, sacreBLEU's; `None` for a metric that is not its own.
    """
    metric = METRICS[metric_name][0]()
    systems: list[tuple[str, Sequence[str]]] = [(baseline, list(outputs[baseline]))]
    systems += [(name, list(texts)) for name, texts in outputs.items() if name != baseline]
    signatures, columns = PairedTest(systems, {metric_name: metric}, _streams(references), test_type="bs")()
    results: Any = columns[metric_name]  # sacreBLEU types them like the column of names beside them
    found = dict(zip((name for name, _ in systems), results, strict=True))
    own = found[baseline].score
    return {
        "scores": {
            name: {"score": one.score, "interval": [one.mean - one.ci, one.mean + one.ci]}
            for name, one in ((name, found[name]) for name in outputs)
        },
        "paired": [
            {
                "model": name,
                "baseline": baseline,
                "difference": found[name].score - own,
                "p_value": _p_value(found[name], own),
            }
            for name in outputs
            if name != baseline
        ],
        "signature": str(signatures[metric_name]) if metric_name == "BLEU" else None,
    }


def _p_value(result: Any, own: float) -> float:
    """sacreBLEU counts resamples that differ more than the systems do; of two equal scores it would say 0.001."""
    return 1.0 if result.score == own else result.p_value


def corpus_score(metric_name: str, outputs: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """The score of one system without a test."""
    return METRICS[metric_name][0]().corpus_score(list(outputs), _streams(references)).score


def _streams(references: Sequence[Sequence[str]]) -> Any:
    """sacreBLEU wants (references, sentences), with None, which its types do not tell, where a sentence has fewer."""
    return [list(stream) for stream in zip_longest(*references)]
