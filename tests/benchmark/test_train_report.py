# SPDX-License-Identifier: Apache-2.0
from dataclasses import asdict

import torch

from tests.benchmark.test_report import row
from tests.benchmark.train_examples import FILE, case
from vanilla_transformer.benchmark.machine import describe_machine
from vanilla_transformer.benchmark.train_configuration import MARIAN, OURS, RNN, X_TRANSFORMERS, load_train_benchmark
from vanilla_transformer.benchmark.train_report import train_report
from vanilla_transformer.benchmark.train_thresholds import check_train_thresholds

CASES = [case({OURS: 1234.0, RNN: 617.0, MARIAN: 500.0}), case({OURS: 250.0}, size="base", threads=2, compiled=True)]
FIGURES = {"waiting_share": 0.0625, "padding_share": 0.125, "first_update": 9.75, "pairs": 120.4}
CORPUS = {
    "runs": {OURS: {"tokens_per_second": 3000.0, **FIGURES}, "peer": {"tokens_per_second": 2000.0, **FIGURES}},
    "ratio": 1.5,
}


def written(**changes) -> str:
    config = load_train_benchmark(FILE)
    results = {
        "settings": asdict(config),
        "machine": describe_machine(torch.device("cpu")),
        "skipped": {X_TRANSFORMERS: "the package x-transformers is not installed"},
        "cases": CASES,
        "memory": {"float32": {OURS: 2 * 2**30, MARIAN: 5 * 2**30}},
        "corpus": None,
    } | changes
    return train_report(results | {"thresholds": check_train_thresholds(results, config.thresholds)})


def test_speeds_shares_and_ratios_are_in_the_tables():
    speeds, ratios = written().split("## Ratios of speeds")
    title = "small, 24 tokens, bfloat16, 1 thread"
    assert row(speeds, title) == ["1,234 (123%)", "617 (62%)", "500 (50%)", "–", "5"]
    assert row(ratios, title) == ["2.47", "–", "–", "2.00"]
    assert row(speeds, "base, 24 tokens, bfloat16, 2 threads, compiled")[0] == "250 (25%)"


def test_skipped_systems_and_those_without_memory_are_named():
    text = written(cases=[case({OURS: 1.0}, no_memory=[MARIAN])])
    assert f"- {X_TRANSFORMERS} is left out: the package x-transformers is not installed." in text
    assert "MarianMT had no memory for small, 24 tokens, bfloat16, 1 thread." in text


def test_the_papers_run_is_extrapolated_from_the_fastest_case():
    cases = [case({OURS: 1e6}, size="base"), case({OURS: 2e6}, size="base", compiled=True)]
    assert "100,000 updates of base, 25,000 + 25,000 tokens each, would take 0.7 hours." in written(cases=cases)


def test_memory_is_in_mebibytes_or_not_measured():
    assert row(written(), OURS) == ["2,048"]
    assert "Not measured: peak memory" in written(memory={"float32": {}, "bfloat16": {}})


def test_whole_runs_come_with_padding_waiting_and_start():
    text = written(corpus=CORPUS).partition("## Whole runs")[2]
    assert row(text, "ours") == ["3,000", "12.5%", "6.2%", "9.8", "120"]
    assert "Ratio of tokens/s: 1.50" in text
    assert "## Whole runs" not in written()
