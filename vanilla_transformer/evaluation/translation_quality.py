# SPDX-License-Identifier: Apache-2.0
"""BLEU and chrF with sacreBLEU's signatures."""

from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF


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
        ValueError: no predictions, or another number than of references; an empty list of references.
    """
    if len(predictions) != len(references) or not predictions:
        raise ValueError(
            f"{len(predictions)} translations cannot be scored against {len(references)} references: give one for each"
        )
    lists = [[reference] if isinstance(reference, str) else list(reference) for reference in references]
    if not all(lists):
        raise ValueError("a translation has an empty list of references: give at least one")
    streams = reference_streams(lists)
    bleu, chrf = BLEU(lowercase=lowercase), CHRF(lowercase=lowercase)
    bleu_score, chrf_score = bleu.corpus_score(predictions, streams), chrf.corpus_score(predictions, streams)
    return {
        "bleu": bleu_score.score,
        "bleu_signature": str(bleu.get_signature()),
        "chrf": chrf_score.score,
        "chrf_signature": str(chrf.get_signature()),
        "length_ratio": bleu_score.sys_len / max(1, bleu_score.ref_len),
        "sentences": len(predictions),
    }


def reference_streams(references: Sequence[Sequence[str]]) -> Any:
    """sacreBLEU's layout, (references, sentences), with None where a sentence has fewer, which its types leave out."""
    return [list(stream) for stream in zip_longest(*references)]
