# SPDX-License-Identifier: Apache-2.0
import pytest

from tests.benchmark.train_examples import case
from vanilla_transformer.benchmark.train_configuration import MARIAN, OURS, TORCH, TrainThresholdsConfig
from vanilla_transformer.benchmark.train_thresholds import best_compiled, check_train_thresholds

REQUIRED = TrainThresholdsConfig(
    marian={"small": 1.2, "base": 1.2},
    best_baseline={"small": 1.3},
    bfloat16_peak={"small": 0.15},
    memory=2.0,
    corpus=1.5,
)


def checked(cases, memory=None, corpus=None) -> dict[str, tuple]:
    results = {"cases": cases, "memory": memory or {}, "corpus": corpus}
    return {row["ratio"]: (row["measured"], row["is_met"]) for row in check_train_thresholds(results, REQUIRED)}


def test_thresholds_are_for_the_worst_case_of_a_size():
    found = checked(
        [
            case({OURS: 200.0, MARIAN: 100.0, TORCH: 125.0}),
            case({OURS: 150.0, MARIAN: 100.0, TORCH: 150.0}, threads=2),
            case({OURS: 100.0, MARIAN: 100.0}, size="base"),
        ]
    )
    assert found["ours / MarianMT, small: every case"] == (1.5, True)
    assert found["ours / MarianMT, base: every case"] == (1.0, False)
    assert found["ours / best baseline, small: every case"] == (1.0, False)


def test_the_share_of_the_peak_is_that_of_bfloat16_at_the_shortest_length():
    found = checked(
        [
            case({OURS: 160.0}),
            case({OURS: 155.0}, threads=2),
            case({OURS: 10.0}, length=512),
            case({OURS: 10.0}, precision="float32"),
            case({OURS: 10.0}, size="base"),
        ]
    )
    assert found["ours, small in bfloat16: share of the matrix peak, every case"] == (pytest.approx(0.155), True)


def test_each_system_counts_with_the_faster_of_compiled_and_not():
    cases = [case({OURS: 100.0, MARIAN: 90.0}), case({OURS: 240.0, MARIAN: 80.0}, compiled=True)]
    (best,) = best_compiled(cases)
    assert {name: result["tokens_per_second"] for name, result in best["results"].items()} == {OURS: 240, MARIAN: 90}
    assert checked(cases)["ours / MarianMT, small: every case"] == (pytest.approx(240 / 90), True)
    assert cases[0]["results"][OURS]["tokens_per_second"] == 100  # the cases stay as they are
    assert len(best_compiled([case({}), case({}, threads=2), case({}, length=512), case({}, size="base")])) == 4


def test_memory_and_whole_runs_have_thresholds_of_their_own():
    found = checked([case({OURS: 1.0})], {"float32": {OURS: 50, MARIAN: 100}, "bfloat16": {OURS: 50}}, {"ratio": 1.4})
    assert found["memory of MarianMT / ours, float32"] == (2.0, True)
    assert found["memory of MarianMT / ours, bfloat16"] == (None, None)
    assert found["ours / Seq2SeqTrainer with MarianMT: whole runs"] == (1.4, False)


def test_a_part_that_is_skipped_leaves_its_thresholds_open():
    assert {is_met for _, is_met in checked([case({OURS: 1.0}, size="big")]).values()} == {None}
