# SPDX-License-Identifier: Apache-2.0
"""BLEU and chrF with sacreBLEU's signatures."""

import shutil
import tempfile
import weakref
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

import datasets
import evaluate
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF


class TranslationQuality(evaluate.Metric):
    """An `evaluate.Metric` around sacreBLEU.

    evaluate would fetch its own metrics from the network. It gathers the predictions of several processes, so that
    process 0 gets the score of the whole corpus, and the others `None`.

    Args:
        cache_dir: where evaluate keeps predictions until they are scored (default: a temporary folder); several
            processes must share one.
        num_process, process_id: the number of processes, and which this is.
        experiment_id: keeps runs in the same `cache_dir` apart.
        options: of `evaluate.Metric`.

    Raises:
        ValueError: several processes without a `cache_dir`.
    """

    def __init__(
        self,
        *,
        cache_dir: str | None = None,
        num_process: int = 1,
        process_id: int = 0,
        experiment_id: str | None = None,
        **options,
    ):
        if cache_dir is None:
            if num_process > 1:
                raise ValueError(f"num_process={num_process} needs cache_dir, a folder that all processes share")
            cache_dir = tempfile.mkdtemp(prefix="translation-quality-")
            weakref.finalize(self, shutil.rmtree, cache_dir, ignore_errors=True)
        super().__init__(
            cache_dir=cache_dir, num_process=num_process, process_id=process_id, experiment_id=experiment_id, **options
        )

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Corpus BLEU and chrF of sacreBLEU.",
            citation="Post 2018, A Call for Clarity in Reporting BLEU Scores",
            inputs_description="predictions: list of str; references: list of str, or of lists of str",
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.List(datasets.Value("string"))}
            ),
        )

    # References are always stored as lists: processes need not agree on a form, nor have any sentences at all.
    def add(self, *, prediction: str, reference: str | Sequence[str]) -> None:  # pyright: ignore[reportIncompatibleMethodOverride] -- evaluate passes keywords
        """Add one translation and its reference or references."""
        super().add(prediction=prediction, reference=_as_list(reference))

    def add_batch(self, *, predictions: Sequence[str], references: Sequence[str | Sequence[str]]) -> None:  # pyright: ignore[reportIncompatibleMethodOverride] -- evaluate passes keywords
        """Add translations and the reference or references of each."""
        if len(predictions) != len(references):
            raise ValueError(_mismatch(len(predictions), len(references)))
        super().add_batch(predictions=list(predictions), references=[_as_list(each) for each in references])

    def _compute(  # pyright: ignore[reportIncompatibleMethodOverride] -- evaluate passes keywords
        self, *, predictions: list[str], references: list[list[str]], lowercase: bool = False, tokenize: str = "13a"
    ) -> dict[str, Any]:
        if not predictions:
            raise ValueError("no translations to score")
        streams = list(zip_longest(*references))  # sacreBLEU wants (references, sentences); None where one has fewer
        bleu, chrf = BLEU(lowercase=lowercase, tokenize=tokenize), CHRF(lowercase=lowercase)
        bleu_score, chrf_score = bleu.corpus_score(predictions, streams), chrf.corpus_score(predictions, streams)
        return {
            "bleu": bleu_score.score,
            "bleu_signature": str(bleu.get_signature()),
            "chrf": chrf_score.score,
            "chrf_signature": str(chrf.get_signature()),
            "length_ratio": bleu_score.sys_len / max(1, bleu_score.ref_len),
            "sentences": len(predictions),
        }


def _as_list(reference: str | Sequence[str]) -> list[str]:
    references = [reference] if isinstance(reference, str) else list(reference)
    if not references:
        raise ValueError("a translation has an empty list of references: give at least one")
    return references


def _mismatch(predictions: int, references: int) -> str:
    return f"{predictions} translations cannot be scored against {references} references: give one for each"


def score_translations(
    predictions: Sequence[str], references: Sequence[str | Sequence[str]], *, lowercase: bool = False
) -> dict[str, Any]:
    """Corpus BLEU (13a) and chrF, in points, with signatures.

    Args:
        references: for each prediction one reference, or a list of them.
        lowercase: score without case; the signatures say so.

    Returns:
        bleu, bleu_signature, chrf, chrf_signature, length_ratio (tokens of the predictions over those of the closest
        references) and sentences.

    Raises:
        ValueError: no predictions, or another number than of references.
    """
    if len(predictions) != len(references) or not predictions:
        raise ValueError(_mismatch(len(predictions), len(references)))
    with tempfile.TemporaryDirectory() as cache:  # removed at once, rather than with the metric
        result = TranslationQuality(cache_dir=cache).compute(
            predictions=predictions, references=references, lowercase=lowercase
        )
    assert result is not None  # only processes other than the first get None
    return result
