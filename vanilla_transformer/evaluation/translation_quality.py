# SPDX-License-Identifier: Apache-2.0
"""BLEU and chrF with sacreBLEU's signatures."""

from collections.abc import Sequence
from tempfile import TemporaryDirectory

import datasets
import evaluate
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF


class TranslationQuality(evaluate.Metric):
    """An `evaluate.Metric` around sacreBLEU.

    evaluate's own loader fetches its metrics from the network; this one is a class. evaluate gathers predictions
    from several processes (`num_process`, `process_id`, `experiment_id`), so that the score is the whole corpus's.
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Corpus BLEU and chrF of sacreBLEU.",
            citation="Post 2018, A Call for Clarity in Reporting BLEU Scores",
            inputs_description="predictions: list of str; references: list of str",
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.Value("string")}
            ),
        )

    def _compute(self, *, predictions: list[str], references: list[str], lowercase: bool = False) -> dict:  # pyright: ignore[reportIncompatibleMethodOverride] -- evaluate passes keywords
        bleu, chrf = BLEU(lowercase=lowercase), CHRF(lowercase=lowercase)
        bleu_score = bleu.corpus_score(predictions, [references])
        chrf_score = chrf.corpus_score(predictions, [references])
        return {
            "bleu": bleu_score.score,
            "bleu_signature": str(bleu.get_signature()),
            "chrf": chrf_score.score,
            "chrf_signature": str(chrf.get_signature()),
            "length_ratio": bleu_score.sys_len / max(1, bleu_score.ref_len),
            "sentences": len(predictions),
        }


def score_translations(predictions: Sequence[str], references: Sequence[str], *, lowercase: bool = False) -> dict:
    """Corpus BLEU (13a) and chrF, in points, with signatures.

    Raises:
        ValueError: other numbers of predictions than of references, or none.
    """
    if len(predictions) != len(references) or not predictions:
        raise ValueError(f"{len(predictions)} translations cannot be scored against {len(references)} references")
    with TemporaryDirectory() as cache:
        metric = TranslationQuality(cache_dir=cache)
        result = metric.compute(predictions=list(predictions), references=list(references), lowercase=lowercase)
    assert result is not None  # only processes other than the first get None
    return result
