# SPDX-License-Identifier: Apache-2.0
"""Scores of several systems, and paired bootstrap resampling (Koehn, 2004) with sacreBLEU."""

from collections.abc import Mapping, Sequence
from statistics import stdev
from typing import Any

from sacrebleu.metrics.base import Metric, Score
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.significance import PairedTest, _bootstrap_resample

from vanilla_transformer.evaluation.translation_quality import reference_streams

WORD_ERROR_RATE = "word error rate"


class WordErrorRate(Metric):
    """A sacreBLEU metric: the percentage of words whose pronunciation equals none of the dictionary's.

    The statistics of a word are (errors, words), which the bootstrap sums over each resample.
    """

    def _preprocess_segment(self, sent: str) -> str:
        return " ".join(sent.split())

    def _extract_reference_info(self, refs: Sequence[str | None]) -> dict[str, Any]:
        return {"pronunciations": {self._preprocess_segment(ref) for ref in refs if ref is not None}}

    def _compute_segment_statistics(self, hypothesis: str, ref_kwargs: dict) -> list[int]:
        return [int(hypothesis not in ref_kwargs["pronunciations"]), 1]

    def _compute_score_from_stats(self, stats: Sequence[Any]) -> Score:
        return Score(WORD_ERROR_RATE, 100 * float(stats[0]) / float(stats[1]))

    def _aggregate_and_compute(self, stats: list[list[Any]]) -> Score:
        return self._compute_score_from_stats([sum(column) for column in zip(*stats, strict=True)])


# name → (metric, whether higher is better, unit)
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
        `scores` by system (`score`, and `interval`, the 95% confidence interval), `paired` (`model`, `baseline`,
        `difference`, its `standard_error` and `p_value`), and `signature`, sacreBLEU's; `None` for the word error rate.
    """
    metric = METRICS[metric_name][0]()
    names = sorted(outputs, key=lambda name: name != baseline)  # sacreBLEU compares with the first
    systems = [(name, list(outputs[name])) for name in names]
    signatures, columns = PairedTest(systems, {metric_name: metric}, reference_streams(references), test_type="bs")()  # pyright: ignore[reportArgumentType] -- Sequence there, list here
    results: Any = columns[metric_name]  # sacreBLEU types them like the column of names beside them
    found = dict(zip(names, results, strict=True))
    resamples = {name: _resampled_scores(metric, texts, references) for name, texts in outputs.items()}
    scores, paired = {}, []
    for name in outputs:
        result = found[name]
        scores[name] = {"score": result.score, "interval": [result.mean - result.ci, result.mean + result.ci]}
        if name != baseline:
            difference = result.score - found[baseline].score
            # sacreBLEU counts resamples that differ more than the systems do; for equal scores it would return 0.001.
            p_value = result.p_value if difference else 1.0
            # sacreBLEU tests the difference's size and has no interval of it.
            changes = [own - other for own, other in zip(resamples[name], resamples[baseline], strict=True)]
            facts = {"difference": difference, "standard_error": stdev(changes), "p_value": p_value}
            paired.append({"model": name, "baseline": baseline} | facts)
    signature = str(signatures[metric_name]) if metric_name == "BLEU" else None
    return {"scores": scores, "paired": paired, "signature": signature}


def _resampled_scores(metric: Metric, outputs: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """The scores of 1,000 resamples, which are the same for all systems: sacreBLEU seeds them alike."""
    statistics = metric._extract_corpus_statistics(outputs, reference_streams(references))
    return [resample.score for resample in _bootstrap_resample(statistics, metric)[1]]


def corpus_score(metric_name: str, outputs: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """The score of one system, without a test."""
    return METRICS[metric_name][0]().corpus_score(list(outputs), reference_streams(references)).score
