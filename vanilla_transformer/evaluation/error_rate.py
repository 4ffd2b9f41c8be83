# SPDX-License-Identifier: Apache-2.0
"""Error rates of pronunciations, where a word may have several right answers."""

from collections.abc import Sequence
from dataclasses import dataclass

from rapidfuzz.distance import Levenshtein


@dataclass(frozen=True)
class PronunciationScore:
    """Rates from 0 to 1; the phoneme error rate may exceed 1."""

    words: int
    word_error_rate: float
    phoneme_error_rate: float


def score_pronunciations(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> PronunciationScore:
    """Compare pronunciations, phonemes separated by spaces, with all those listed for the word.

    A word is right if it matches any listed pronunciation. Phoneme errors are the fewest insertions, deletions and
    substitutions to the closest listed one (of two equally close, the shorter), over the number of its phonemes.

    Raises:
        ValueError: no predictions, or another number than of references; a word without a pronunciation.
    """
    if len(predictions) != len(references) or not predictions:
        raise ValueError(f"{len(predictions)} predictions cannot be scored against {len(references)} words")
    wrong = errors = phonemes = 0
    for number, (prediction, variants) in enumerate(zip(predictions, references, strict=True), start=1):
        if not variants or not all(variant.split() for variant in variants):
            raise ValueError(f"word {number} has no listed pronunciation, or an empty one")
        predicted = prediction.split()
        distances = [(Levenshtein.distance(predicted, variant.split()), len(variant.split())) for variant in variants]
        distance, length = min(distances)
        wrong += distance > 0
        errors += distance
        phonemes += length
    return PronunciationScore(len(predictions), wrong / len(predictions), errors / phonemes)
