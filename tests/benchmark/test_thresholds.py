# SPDX-License-Identifier: Apache-2.0
import pytest

from tests.benchmark.example_results import real, synthetic, thresholds
from vanilla_transformer.benchmark.systems import CTRANSLATE2, FAST, GENERATE, MARIAN
from vanilla_transformer.benchmark.thresholds import check_thresholds, exact_enough, ratios

FLOAT32, INT8, CT32, CT8 = FAST["float32"], FAST["int8"], CTRANSLATE2["float32"], CTRANSLATE2["int8"]
# Over MarianMT 2 and 8, over CTranslate2 1 and 2; int8 over int8 0.5 and 4.
ONE = {MARIAN: 100.0, CT32: 200.0, CT8: 400.0, GENERATE: 100.0, FLOAT32: 200.0, INT8: 200.0}
OTHER = {MARIAN: 100.0, CT32: 400.0, CT8: 400.0, GENERATE: 90.0, FLOAT32: 800.0, INT8: 1600.0}


def found(checked: list[dict]) -> dict[str, tuple]:
    return {threshold["ratio"]: (threshold["measured"], threshold["is_met"]) for threshold in checked}


def test_a_ratio_is_that_of_the_tokens_in_each_case():
    assert ratios(synthetic(ONE, OTHER), FLOAT32, MARIAN) == [2.0, 8.0]
    assert ratios(synthetic(ONE, OTHER), FLOAT32, "nobody") == []


def test_thresholds_are_for_geometric_means_and_worst_cases():
    checked = found(check_thresholds(synthetic(ONE, OTHER), None, thresholds()))
    assert checked[f"{FLOAT32} / {MARIAN}: geometric mean"] == (pytest.approx(4.0), True)  # sqrt(2 x 8)
    assert checked[f"{FLOAT32} / {MARIAN}: every case"] == (2.0, True)
    assert checked[f"{FLOAT32} / {CT32}: geometric mean"] == (pytest.approx(2**0.5), True)
    assert checked[f"{FLOAT32} / {CT32}: every case"] == (1.0, True)  # as much as is required is enough
    assert checked[f"{GENERATE} / {MARIAN}: every case"] == (0.9, False)


def test_a_skipped_system_leaves_its_thresholds_open():
    without = [{name: speed for name, speed in case.items() if name not in (CT32, CT8)} for case in (ONE, OTHER)]
    checked = check_thresholds(synthetic(*without), None, thresholds())
    assert {threshold["is_met"] for threshold in checked if "CTranslate2" in threshold["ratio"]} == {None}
    assert all(threshold["is_met"] is not None for threshold in checked[:2])


def test_exact_enough_is_within_the_points_of_float32():
    scored = real(**{FLOAT32: (1.0, 30.0), FAST["bfloat16"]: (1.0, 30.08), INT8: (1.0, 29.85)})
    assert exact_enough(scored, thresholds()) == {"float32", "bfloat16"}
    assert exact_enough(scored, thresholds(exact_bleu=0.2)) == {"float32", "bfloat16", "int8"}
    assert exact_enough(None, thresholds()) == {"float32"}


def best(scored, **changes):
    checked = check_thresholds(synthetic(ONE, OTHER), scored, thresholds(**changes))
    return next(threshold for threshold in checked if "exact" in threshold["ratio"])


def test_the_best_exact_precision_is_compared_with_int8():
    # int8: sqrt(0.5 x 4); float32: sqrt(0.5 x 2)
    exact = best(real(**{FLOAT32: (1.0, 30.0), INT8: (1.0, 30.0)}))
    assert (exact["measured"], exact["is_met"]) == (pytest.approx(2**0.5), True)
    assert "(int8)" in exact["ratio"]
    inexact = best(real(**{FLOAT32: (1.0, 30.0), INT8: (1.0, 20.0)}), best_ctranslate2_int8_mean=1.2)
    assert (inexact["measured"], inexact["is_met"]) == (pytest.approx(1.0), False)
    assert "(float32)" in inexact["ratio"]


def test_unknown_exactness_leaves_the_threshold_open():
    unknown = best(None, best_ctranslate2_int8_mean=1.2)
    assert (unknown["measured"], unknown["is_met"]) == (None, None)
    assert "int8: 1.41, its exactness unknown without a real file" in unknown["ratio"]
    assert best(None, best_ctranslate2_int8_mean=1.5)["is_met"] is False  # not by int8 either


def test_real_sentences_have_thresholds_of_their_own():
    checked = check_thresholds(
        synthetic(ONE), real(**{FLOAT32: (90.0, 30.0), MARIAN: (30.0, 30.0), CT32: (90.0, 30.0)}), thresholds()
    )
    assert [(threshold["measured"], threshold["is_met"]) for threshold in checked[-2:]] == [(3.0, True), (1.0, False)]
    assert [threshold["is_met"] for threshold in check_thresholds(synthetic(ONE), None, thresholds())[-2:]] == [
        None,
        None,
    ]
