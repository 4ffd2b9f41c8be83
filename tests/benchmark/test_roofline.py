# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from vanilla_transformer import VanillaTransformerConfig, VanillaTransformerForConditionalGeneration
from vanilla_transformer.benchmark.configuration import RooflineConfig
from vanilla_transformer.benchmark.roofline import (
    WeightCounts,
    count_weights,
    peak_operations,
    read_bandwidth,
    roofline_seconds,
)
from vanilla_transformer.benchmark.systems import Batch

CPU = torch.device("cpu")


def test_weight_counts_follow_the_papers_formula():
    d, f, v, layers = 16, 32, 24, 3
    config = VanillaTransformerConfig(vocab_size=v, d_model=d, d_ff=f, num_layers=layers, num_heads=2)
    found = count_weights(VanillaTransformerForConditionalGeneration(config))
    feed_forward, norm = 2 * d * f + f + d, 2 * d
    assert found.step == layers * (4 * d * d + 2 * d * d + feed_forward + 3 * norm) + v * d
    assert found.source == layers * (4 * d * d + feed_forward + 2 * norm) + layers * 2 * d * d


def seconds(bandwidth: float, peak: float) -> float:
    batch = Batch([[5] * 5] * 2, max_new_tokens=7, is_fixed_length=True)
    return roofline_seconds(WeightCounts(step=100, source=50), 4, bandwidth, peak, batch, beams=3)


def test_reading_bounds_where_memory_is_slow():
    # the encoder's 50 weights once, the decoder's 100 for each of 7 tokens, 4 bytes each
    assert seconds(bandwidth=10.0, peak=float("inf")) == pytest.approx((50 + 7 * 100) * 4 / 10)


def test_multiplying_bounds_where_products_are_slow():
    # 2 sentences of 5 source tokens; one hypothesis for the first token of a target, 3 for the 6 others
    rows = 50 * 2 * 5 + 100 * 2 + 100 * 6 * 2 * 3
    assert seconds(bandwidth=float("inf"), peak=10.0) == pytest.approx(2 * rows / 10)


def test_each_phase_takes_the_longer_of_reading_and_multiplying():
    # bytes 200 and 400 a phase; operations 1000 of the source, 400 and 1200 of a step
    assert seconds(bandwidth=1.0, peak=1.0) == pytest.approx(max(200, 1000) + max(400, 400) + 6 * max(400, 1200))


def test_bandwidth_and_peak_are_measured():
    assert read_bandwidth(2**12, CPU, repeats=1) > 0
    peaks = peak_operations(RooflineConfig(read_mebibytes=1, product=16, repeats=1), CPU)
    assert peaks.keys() >= {"float32", "int8"}
    assert min(peaks.values()) > 0
