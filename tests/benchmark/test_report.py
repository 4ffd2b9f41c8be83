# SPDX-License-Identifier: Apache-2.0
from dataclasses import asdict
from pathlib import Path

import torch

from tests.benchmark.example_results import real, synthetic, thresholds
from vanilla_transformer.benchmark.configuration import load_benchmark_config
from vanilla_transformer.benchmark.machine import describe_machine
from vanilla_transformer.benchmark.report import report
from vanilla_transformer.benchmark.systems import CTRANSLATE2, FAST, GENERATE, MARIAN
from vanilla_transformer.benchmark.thresholds import check_thresholds

FILE = Path(__file__).parents[2] / "configs" / "benchmark_decode.yaml"
SPEEDS = dict.fromkeys((MARIAN, *CTRANSLATE2.values(), GENERATE), 100.0) | {FAST["float32"]: 1234.0}


def written(speeds: dict[str, float], scored=None) -> str:
    cases, memory = synthetic(speeds, speeds), dict.fromkeys(speeds, 3 * 2**20)
    return report(
        {
            "settings": asdict(load_benchmark_config(FILE)),
            "machine": describe_machine(torch.device("cpu")),
            "skipped": {FAST["bfloat16"]: "this CPU has no bfloat16 instructions"},
            "roofline": {"bandwidth": 11e9, "peaks": {"float32": 57e9}},
            "synthetic": [{"size": "tiny", "memory": memory, "bandwidths": {"float32": 5e9}, "cases": cases}],
            "real": scored,
            "thresholds": check_thresholds(cases, scored, thresholds()),
        }
    )


def row(text: str, start: str) -> list[str]:
    line = next(line for line in text.splitlines() if line.startswith(f"| {start} |"))
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def test_speeds_ratios_and_their_mean_are_in_the_tables():
    text = written(SPEEDS)
    assert row(text, FAST["float32"])[:2] == ["1,234", "1,234"]
    assert row(text, f"{FAST['float32']} / {MARIAN}") == ["12.34", "12.34", "12.34"]
    assert "| tiny B1 b1 | tiny B4 b1 |" in text


def test_missed_thresholds_are_marked_and_counted():
    assert "No measured threshold is missed." in written(SPEEDS)
    slow = written(SPEEDS | {GENERATE: 50.0})
    assert row(slow, f"{GENERATE} / {MARIAN}: every case") == ["1.00", "0.50", "**not met**"]
    assert "1 of 8 thresholds are not met." in slow
    assert row(slow, f"{FAST['float32']} / {MARIAN}: geometric mean")[-1] == "met"


def test_skipped_systems_are_named_with_their_reason():
    text = written(SPEEDS)
    assert f"- {FAST['bfloat16']} is left out: this CPU has no bfloat16 instructions." in text
    assert "not measured" in row(text, f"{FAST['float32']} / {MARIAN}: real sentences, best batch of each")
    assert "## Real sentences" not in text


def test_real_sentences_come_with_bleu_and_ratios():
    scored = real(**{MARIAN: (20.0, 33.333), FAST["float32"]: (50.0, 33.4)})
    text = written(SPEEDS, scored).partition("## Real sentences")[2]
    assert row(text, FAST["float32"]) == ["8", "50.0", "500", "33.40", "2.50", "–", "–"]


def test_the_fraction_of_the_roofline_is_beside_its_seconds():
    text = written(SPEEDS).partition("## Roofline")[2]
    assert row(text, FAST["float32"]) == ["250.0 ms, 25%", "250.0 ms, 25%"]
