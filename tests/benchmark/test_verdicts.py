# SPDX-License-Identifier: Apache-2.0
import pytest

from tests.benchmark.example_results import bars, real, sizes
from vanilla_transformer.benchmark.systems import CTRANSLATE2, FAST, GENERATE, MARIAN
from vanilla_transformer.benchmark.verdicts import exact_enough, judge, ratios

FLOAT32, INT8, CT32, CT8 = FAST["float32"], FAST["int8"], CTRANSLATE2["float32"], CTRANSLATE2["int8"]
# Over MarianMT 2 and 8, over CTranslate2 1 and 2; int8 over int8 0.5 and 4.
ONE = {MARIAN: 100.0, CT32: 200.0, CT8: 400.0, GENERATE: 100.0, FLOAT32: 200.0, INT8: 200.0}
OTHER = {MARIAN: 100.0, CT32: 400.0, CT8: 400.0, GENERATE: 90.0, FLOAT32: 800.0, INT8: 1600.0}


def found(bars_of: list[dict]) -> dict[str, tuple]:
    return {bar["what"]: (bar["measured"], bar["is_met"]) for bar in bars_of}


def test_a_ratio_is_that_of_the_tokens_in_each_cell():
    assert ratios(sizes(ONE, OTHER), FLOAT32, MARIAN) == [2.0, 8.0]
    assert ratios(sizes(ONE, OTHER), FLOAT32, "nobody") is None


def test_bars_are_geometric_means_and_the_worst_cells():
    verdicts = found(judge(sizes(ONE, OTHER), None, bars()))
    assert verdicts[f"{FLOAT32} / {MARIAN}: geometric mean"] == (pytest.approx(4.0), True)  # sqrt(2 x 8)
    assert verdicts[f"{FLOAT32} / {MARIAN}: every cell"] == (2.0, True)
    assert verdicts[f"{FLOAT32} / {CT32}: geometric mean"] == (pytest.approx(2**0.5), True)
    assert verdicts[f"{FLOAT32} / {CT32}: every cell"] == (1.0, True)  # as much as is required is enough
    assert verdicts[f"{GENERATE} / {MARIAN}: every cell"] == (0.9, False)


def test_a_missing_contender_leaves_its_bars_open():
    without = [{name: speed for name, speed in cell.items() if name not in (CT32, CT8)} for cell in (ONE, OTHER)]
    verdicts = judge(sizes(*without), None, bars())
    assert {bar["is_met"] for bar in verdicts if "CTranslate2" in bar["what"]} == {None}
    assert all(bar["is_met"] is not None for bar in verdicts[:2])


def test_exact_enough_is_within_the_points_of_float32():
    scored = real(**{FLOAT32: (1.0, 30.0), FAST["bfloat16"]: (1.0, 30.08), INT8: (1.0, 29.85)})
    assert exact_enough(scored, bars()) == {"float32", "bfloat16"}
    assert exact_enough(scored, bars(exact_bleu=0.2)) == {"float32", "bfloat16", "int8"}
    assert exact_enough(None, bars()) == {"float32"}


def best(scored, **changes):
    return next(bar for bar in judge(sizes(ONE, OTHER), scored, bars(**changes)) if "exact" in bar["what"])


def test_the_best_precision_that_is_exact_is_held_against_int8():
    # int8: sqrt(0.5 x 4); float32: sqrt(0.5 x 2)
    exact = best(real(**{FLOAT32: (1.0, 30.0), INT8: (1.0, 30.0)}))
    assert (exact["measured"], exact["is_met"]) == (pytest.approx(2**0.5), True)
    assert "(int8)" in exact["what"]
    inexact = best(real(**{FLOAT32: (1.0, 30.0), INT8: (1.0, 20.0)}), best_ctranslate2_int8_mean=1.2)
    assert (inexact["measured"], inexact["is_met"]) == (pytest.approx(1.0), False)
    assert "(float32)" in inexact["what"]


def test_what_no_real_file_says_to_be_exact_leaves_the_bar_open():
    unknown = best(None, best_ctranslate2_int8_mean=1.2)
    assert (unknown["measured"], unknown["is_met"]) == (None, None)
    assert "int8: 1.41, exact by no real file" in unknown["what"]
    assert best(None, best_ctranslate2_int8_mean=1.5)["is_met"] is False  # not by int8 either


def test_real_sentences_have_bars_of_their_own():
    verdicts = judge(sizes(ONE), real(**{FLOAT32: (90.0, 30.0), MARIAN: (30.0, 30.0), CT32: (90.0, 30.0)}), bars())
    assert [(bar["measured"], bar["is_met"]) for bar in verdicts[-2:]] == [(3.0, True), (1.0, False)]
    assert [bar["is_met"] for bar in judge(sizes(ONE), None, bars())[-2:]] == [None, None]
