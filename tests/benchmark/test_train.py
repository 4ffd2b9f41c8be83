# SPDX-License-Identifier: Apache-2.0
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.benchmark.train_examples import TINY, tiny_benchmark
from vanilla_transformer.benchmark import train
from vanilla_transformer.benchmark.command import main
from vanilla_transformer.benchmark.train import benchmark_training, measure_case
from vanilla_transformer.benchmark.train_configuration import MARIAN, OURS, RNN, SYSTEMS
from vanilla_transformer.benchmark.train_systems import TrainStep, skip_reasons

REPOSITORY = Path(__file__).parents[2]
CPU = torch.device("cpu")


def test_a_case_counts_the_tokens_of_both_sides_per_second():
    found = measure_case(tiny_benchmark(), [OURS, MARIAN], "tiny", "float32", 8, False, CPU, peak=1e9)
    assert list(found["results"]) == [OURS, MARIAN]
    ours = found["results"][OURS]
    seconds = sum(ours["seconds"]) / 2  # the median of two rounds
    assert ours["tokens_per_second"] == pytest.approx(2 * 16 / seconds)
    assert ours["sentences_per_second"] == pytest.approx(2 / seconds)
    parameters = TrainStep(OURS, tiny_benchmark(), "tiny", 8, CPU, "float32").model.num_parameters()
    assert ours["peak_share"] == pytest.approx(6 * parameters * 16 / seconds / 1e9)


def test_a_system_without_memory_is_named_and_the_others_are_measured(monkeypatch):
    class Step(TrainStep):
        def __call__(self, batch, updates):
            if self.name == MARIAN:
                raise torch.OutOfMemoryError("no memory")
            return super().__call__(batch, updates)

    monkeypatch.setattr(train, "TrainStep", Step)
    found = measure_case(tiny_benchmark(), [MARIAN, OURS], "tiny", "float32", 6, False, CPU, peak=1.0)
    assert (found["no_memory"], list(found["results"])) == ([MARIAN], [OURS])


def test_the_rnn_is_not_compiled(monkeypatch):
    compiled = []
    monkeypatch.setattr(TrainStep, "compile", lambda step: compiled.append(step.name))
    found = measure_case(tiny_benchmark(), [OURS, RNN], "tiny", "float32", 6, True, CPU, peak=1.0)
    assert (compiled, list(found["results"])) == ([OURS], [OURS])


def test_every_case_is_measured_and_written(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "update_memory", lambda config, names, precision, device: dict.fromkeys(names, 1))
    config = tiny_benchmark("systems=[ours, MarianMT]", "precisions=[float32]", f"output={tmp_path}/new/train.json")
    shown = []
    results = benchmark_training(config, shown.append)
    assert [(case["length"], case["threads"]) for case in results["cases"]] == [(6, 1), (8, 1)]
    assert "tiny, 6 tokens, float32, 1 thread: ours " in shown[0]
    on_disk = json.loads((tmp_path / "new" / "train.json").read_text(encoding="utf-8"))
    assert on_disk["result"]["thresholds"] == results["thresholds"]
    assert on_disk["settings"]["lengths"] == [6, 8]


def test_a_precision_that_the_device_lacks_is_an_error(monkeypatch):
    monkeypatch.setattr(train, "lacks_precision", lambda precision, device: "no such instructions")
    with pytest.raises(ValueError, match=r"precisions=\['bfloat16'\]: no such instructions"):
        benchmark_training(tiny_benchmark("precisions=[bfloat16]"), print)


def test_an_error_of_the_command_is_one_line(capsys, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    assert main(["train", "sizes=[huge]"]) == 1
    expected = "benchmark: error: sizes='huge' must be one of quickstart, small, base, big\n"
    assert capsys.readouterr() == ("", expected)


# Runs without the packages of training, on a machine that has only torch and transformers.
WITHOUT_EXTRAS = """
import importlib.util, runpy, sys
missing = {"accelerate", "ctranslate2", "datasets", "evaluate", "sacrebleu", "tensorboard"}
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *more: None if name in missing else find_spec(name, *more)
sys.modules |= dict.fromkeys(missing)  # importing them raises ModuleNotFoundError
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.slow
def test_the_script_measures_and_reports_every_case_with_torch_and_transformers_alone(tmp_path):
    output = tmp_path / "new" / "train.json"
    script = ["scripts/benchmark.py", "train", *TINY, f"output={output}"]
    command = [sys.executable, "-c", WITHOUT_EXTRAS, *script]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(output.read_text(encoding="utf-8"))["result"]
    assert [(case["precision"], case["length"]) for case in found["cases"]] == [
        (precision, length) for precision in ("float32", "bfloat16") for length in (6, 8)
    ]
    names = [name for name in SYSTEMS if name not in skip_reasons(list(SYSTEMS))]
    assert all(list(case["results"]) == names for case in found["cases"])
    if sys.platform == "linux":
        assert all(list(memory) == names for memory in found["memory"].values())
    assert "## Tokens per second, and share of the matrix peak" in done.stdout
    assert done.stderr.count("tokens/s") == 4
