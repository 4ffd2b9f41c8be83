# SPDX-License-Identifier: Apache-2.0
import time

import pytest
import torch

from tests.benchmark.train_examples import tiny_benchmark
from tests.conftest import write_reversals
from vanilla_transformer.benchmark import train_corpus
from vanilla_transformer.benchmark.train_configuration import OURS
from vanilla_transformer.benchmark.train_corpus import TRAINER, RunMeter, measure_corpus_runs, run_ours, run_trainer


class Model(torch.nn.Linear):
    def forward(self, input_ids, attention_mask, labels):
        return super().forward(torch.ones(1)).sum()


def test_the_meter_counts_real_tokens_and_the_time_between_updates(monkeypatch):
    # A forward pass and a step at each of these times; the process began at 5.
    clock = iter([10.0, 12.0, 12.5, 14.0, 15.5, 16.0])
    monkeypatch.setattr(train_corpus.time, "time", lambda: next(clock))
    model = Model(1, 1)
    meter, optimizer = RunMeter(model, started=5.0), torch.optim.SGD(model.parameters())
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
    labels = torch.tensor([[7, 8], [7, -100]])
    for _ in range(3):  # 7 of 10 positions are real tokens
        model(input_ids=mask, attention_mask=mask, labels=labels).backward()
        optimizer.step()
    assert meter.figures() == pytest.approx(
        {
            "tokens_per_second": 2 * 7 / 4,  # of the second and third update, from 12 to 16
            "waiting_share": (0.5 + 1.5) / 4,
            "padding_share": 0.3,
            "first_update": 7.0,
            "pairs": 2.0,
        }
    )


@pytest.fixture
def config(tmp_path):
    files = write_reversals(tmp_path, "train", 300)
    return tiny_benchmark(*(f"corpus.{side}={path}" for side, path in files.items()), "device=cpu")


def test_both_runs_make_the_same_number_of_updates_with_as_many_pairs(config, tmp_path):
    ours = run_ours(config, tmp_path / "warm", time.time())
    theirs = run_trainer(config, tmp_path / "warm", round(ours["pairs"]), time.time())
    assert theirs["pairs"] == pytest.approx(ours["pairs"], abs=0.5)
    assert 0 <= ours["padding_share"] < theirs["padding_share"]  # pairs of similar length beside random ones
    assert all(figures["tokens_per_second"] > 0 for figures in (ours, theirs))


def test_runs_take_turns_after_one_that_fills_the_caches(config, monkeypatch):
    calls = []

    def in_own_process(function, *arguments, imports_anew):
        calls.append(function.__name__)
        pairs = arguments[2] if function is run_trainer else 20.4
        return {"tokens_per_second": 100.0 if function is run_trainer else 250.0, "pairs": pairs}

    monkeypatch.setattr(train_corpus, "in_own_process", in_own_process)
    config.corpus.repeats = 2
    found = measure_corpus_runs(config, lambda line: None)
    assert calls == ["run_ours", "run_ours", "run_trainer", "run_ours", "run_trainer"]
    assert found["ratio"] == 2.5
    assert found["runs"][TRAINER] == {"tokens_per_second": 100.0, "pairs": 20}
    assert len(found["each"][OURS]) == 2
