# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from sacrebleu.metrics.bleu import BLEU

from vanilla_transformer.comparison.significance import corpus_score, score_systems

PRONUNCIATIONS = [["K AE T"], ["T AH", "T AA"], ["AE K T"], ["K IH T"]] * 25
RIGHT = [references[-1] for references in PRONUNCIATIONS]


def test_a_word_is_right_if_it_matches_any_listed_pronunciation():
    outputs = ["K AE T", "T AA", "AE T", "K  IH T "] * 25
    assert corpus_score("word error rate", outputs, PRONUNCIATIONS) == 25.0


def test_bleu_is_sacrebleus():
    references = [[f"the cat number {i} sat on the mat"] for i in range(20)]
    outputs = {"Transformer": [f"the cat number {i} sat on a mat" for i in range(20)],
               "RNN": [f"a cat number {i} sat on the mat" for i in range(20)]}  # fmt: skip
    found = score_systems("BLEU", outputs, references, "Transformer")
    bleu = BLEU()
    for name, texts in outputs.items():
        expected = bleu.corpus_score(texts, [[reference for (reference,) in references]]).score
        assert found["scores"][name]["score"] == pytest.approx(expected)
    assert found["signature"].startswith("nrefs:1|bs:1000|seed:12345|case:mixed|eff:no|tok:13a")


def test_equal_outputs_have_no_significant_difference():
    found = score_systems("word error rate", {"Transformer": RIGHT, "RNN": list(RIGHT)}, PRONUNCIATIONS, "Transformer")
    (pair,) = found["paired"]
    assert pair["difference"] == 0
    assert pair["p_value"] > 0.5


def test_a_large_difference_is_significant_with_the_right_sign():
    worse = ["nothing" if i % 3 else text for i, text in enumerate(RIGHT)]
    found = score_systems("word error rate", {"RNN": worse, "Transformer": RIGHT}, PRONUNCIATIONS, "Transformer")
    (pair,) = found["paired"]
    assert pair["difference"] == pytest.approx(66.0)  # the RNN's minus the Transformer's
    assert pair["p_value"] < 0.01
    assert list(found["scores"]) == ["RNN", "Transformer"]


def test_the_confidence_interval_of_a_proportion():
    wrong = np.random.default_rng(1).random(2000) < 0.3
    references = [["A"]] * 2000
    outputs = ["B" if is_wrong else "A" for is_wrong in wrong]
    found = score_systems("word error rate", {"Transformer": outputs, "RNN": outputs}, references, "Transformer")
    low, high = found["scores"]["Transformer"]["interval"]
    proportion = wrong.mean()
    assert (high - low) / 2 == pytest.approx(196 * np.sqrt(proportion * (1 - proportion) / 2000), rel=0.15)


def test_the_standard_error_of_a_difference_is_that_of_paired_words():
    wrong = np.random.default_rng(1).random((2, 2000)) < [[0.3], [0.4]]
    wrong[:, :1000] = wrong[0, :1000]  # the models agree on half of the words
    outputs = {name: ["B" if is_wrong else "A" for is_wrong in row] for name, row in zip("TR", wrong, strict=True)}
    (pair,) = score_systems("word error rate", outputs, [["A"]] * 2000, "T")["paired"]
    changes = wrong[1].astype(float) - wrong[0]
    assert pair["difference"] == pytest.approx(100 * changes.mean())
    assert pair["standard_error"] == pytest.approx(100 * changes.std() / np.sqrt(2000), rel=0.1)
