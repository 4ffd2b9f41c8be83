# SPDX-License-Identifier: Apache-2.0
"""Expected utilities against sacreBLEU's own sentence scores."""

import random

import pytest
from sacrebleu import sentence_bleu, sentence_chrf

from vanilla_transformer.inference.mbr import expected_utilities

WORDS = ["Ein", "Mann", "mit", "Hut", "steht", "vor", "dem", "Haus,", "zwei", "Kinder", ".", "日本語", "naïve"]


@pytest.mark.parametrize(("utility", "score"), [("chrf", sentence_chrf), ("bleu", sentence_bleu)])
def test_expected_utility_is_the_mean_of_sacrebleus_scores(utility, score):
    texts = ["", *(" ".join(random.choices(WORDS, k=random.randint(1, 8))) for _ in range(7))]
    texts += texts[2:4]  # drawn again
    found = expected_utilities(texts, utility)
    for text, value in zip(texts, found, strict=True):
        assert value == pytest.approx(sum(score(text, [other]).score for other in texts) / len(texts), abs=1e-9)


def test_the_text_that_most_candidates_share_wins():
    texts = ["a b c d", "x y z", "a b c d", "q"]
    utilities = expected_utilities(texts, "chrf")
    assert utilities.index(max(utilities)) == 0
