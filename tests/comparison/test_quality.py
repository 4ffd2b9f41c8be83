# SPDX-License-Identifier: Apache-2.0
"""Two tiny models on letters in reverse, trained in this process."""

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate.state import AcceleratorState

from tests.conftest import TinyRun, write_reversals
from vanilla_transformer.comparison import quality
from vanilla_transformer.comparison.compare import load_compare_config
from vanilla_transformer.comparison.quality import QualityConfig, load_runs, load_test_set, measure_quality

CPU = torch.device("cpu")


def train_here(function, values) -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    function(values)


def task_of(tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch) -> QualityConfig:
    """The Transformer of `tiny_run` and an RNN, for 3 and 5 updates and a fraction of a second."""
    monkeypatch.setattr(quality, "run_in_subprocess", train_here)
    monkeypatch.setattr(quality, "check_parameters", lambda where, parameters: None)  # too small to be equal
    rnn = {"extends": tiny_run.config.name, "model": {"model_type": "rnn_seq2seq", "hidden_size": 12,
           "embedding_size": 8}, "training": {"attention": "eager"}}  # fmt: skip
    (tiny_run.folder / "rnn.yaml").write_text(yaml.safe_dump(rnn), encoding="utf-8")
    return QualityConfig(
        runs={"Transformer": str(tiny_run.config), "RNN": str(tiny_run.folder / "rnn.yaml")},
        metric="BLEU",
        updates=[3, 5],
        minutes=0.005,
        data={"test": write_reversals(tiny_run.folder, "test", 20)},
    )


@pytest.fixture
def task(tiny_run, monkeypatch) -> QualityConfig:
    return task_of(tiny_run, monkeypatch)


def measure(task, folder):
    (result,) = measure_quality({"letters": task}, folder, CPU, lambda *_: None)
    return result


@dataclass
class Measured:
    task: QualityConfig
    folder: Path
    result: dict[str, Any]


@pytest.fixture(scope="module")
def measured_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Measured]:
    """A finished measurement; read-only."""
    with pytest.MonkeyPatch.context() as patch:
        run = TinyRun(tmp_path_factory.mktemp("measured"))
        task, folder = task_of(run, patch), run.folder / "quality"
        yield Measured(task, folder, measure(task, folder))


@pytest.fixture
def measured(measured_once: Measured, monkeypatch) -> Measured:
    """The finished measurement, with training disabled."""
    monkeypatch.setattr(quality, "run_in_subprocess", None)
    return measured_once


def test_every_model_is_trained_and_scored_within_every_budget(measured):
    result = measured.result
    three, five, time = result["budgets"]
    amounts = [(budget["budget"], budget["amount"], budget["updates"], budget["minutes"]) for budget in (three, time)]
    assert amounts == [("equal updates", "3 updates", 3, None), ("equal time", "0.005 minutes", None, 0.005)]
    assert [model["updates"] for model in three["models"].values()] == [3, 3]
    assert [model["updates"] for model in five["models"].values()] == [5, 5]
    assert all(model["training_seconds"] >= 0.3 for model in time["models"].values())
    assert [pair["model"] for pair in time["paired"]] == ["RNN"]
    assert set(time["examples"][0]["outputs"]) == {"Transformer", "RNN"}
    assert result["signature"].startswith("nrefs:1|bs:1000")
    assert result["sentences"] == 20


def test_every_budget_is_a_run_that_ends_there(measured):
    # A schedule that falls to zero needs the end of its own run; 5 updates after 3 would not do.
    for budget, end in (("3 updates", "max_updates"), ("5 updates", "max_updates"), ("0.005 minutes", "max_minutes")):
        for model in ("Transformer", "RNN"):
            run = measured.folder / "letters" / model / budget
            training = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))["training"]
            ends = {key for key in ("max_updates", "max_minutes", "max_epochs") if training[key] is not None}
            assert ends == {end}
            assert training[end] == float(budget.split()[0])


def test_an_unfinished_run_resumes(task, tmp_path):
    task.updates, folder = 5, tmp_path / "quality"
    run = load_runs("letters", task, task.budgets[0], folder / "letters")["RNN"]
    quality.run_in_subprocess(
        quality._train, run.to_dict() | {"training": run.to_dict()["training"] | {"max_updates": 3}}
    )
    updates, _ = measure(task, folder)["budgets"]
    assert updates["models"]["RNN"]["updates"] == 5


def test_the_crossings_are_against_minutes_and_updates(measured):
    assert [found["cost"] for found in measured.result["crossings"]] == ["minutes", "updates"]


@pytest.mark.parametrize(
    ("minutes", "updates", "budgets"),
    [
        (2.0, None, ["2 minutes"]),
        ([1.0, 0.5], 1000, ["1,000 updates", "0.5 minutes", "1 minute"]),
        ([2.0, 2.0], [1, 30], ["1 update", "30 updates", "2 minutes"]),
    ],
)
def test_budgets_are_those_of_updates_then_of_minutes(task, minutes, updates, budgets):
    task.minutes, task.updates = minutes, updates
    assert [str(budget) for budget in task.budgets] == budgets


def test_finished_outcomes_are_not_measured_again(measured):
    assert measure(measured.task, measured.folder) == measured.result


def test_a_damaged_outcome_is_named(task, tmp_path):
    path = tmp_path / "quality" / "letters" / "RNN" / "3 updates.json"
    path.parent.mkdir(parents=True)
    path.write_text('{"settings": {"upd', encoding="utf-8")
    with pytest.raises(ValueError, match=r"RNN/3 updates.json is damaged: remove it, and the same command"):
        measure(task, tmp_path / "quality")


def test_an_outcome_of_other_settings_is_named(measured):
    with pytest.raises(ValueError, match="3 updates.json was made with other settings"):
        measure(replace(measured.task, test_sentences=5), measured.folder)


def test_an_outcome_of_another_model_is_named(measured):
    path = Path(measured.task.runs["RNN"])
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("hidden_size: 12", "hidden_size: 13"), encoding="utf-8")
    try:
        with pytest.raises(ValueError, match="RNN/3 updates.json was made with other settings"):
            measure(measured.task, measured.folder)
    finally:
        path.write_text(text, encoding="utf-8")


def test_unequal_models_are_not_trained(task, tmp_path, monkeypatch):
    from vanilla_transformer.comparison.fairness import check_parameters

    monkeypatch.setattr(quality, "check_parameters", check_parameters)
    monkeypatch.setattr(quality, "run_in_subprocess", None)
    with pytest.raises(ValueError, match=r"quality.letters.runs: .* has .* parameters and .*, more than 5% apart"):
        measure(task, tmp_path / "quality")


def test_values_of_a_task_are_those_of_every_run(task, tmp_path):
    task.training, task.optimizer = {"checkpoint_every": 3}, {"warmup_steps": 7}
    runs = load_runs("letters", task, task.budgets[0], tmp_path).values()
    assert [(run.training.checkpoint_every, run.optimizer.warmup_steps) for run in runs] == [(3, 7), (3, 7)]


def test_runs_with_different_data_are_refused(task, tiny_run, tmp_path):
    with (tiny_run.folder / "rnn.yaml").open("a", encoding="utf-8") as file:
        file.write("data: {max_length: 7}\n")
    with pytest.raises(ValueError, match=r"quality.letters: the runs of Transformer and RNN differ in data.max_length"):
        load_runs("letters", task, task.budgets[0], tmp_path)


def test_runs_with_different_vocabularies_are_refused(task, tiny_run, tmp_path):
    with (tiny_run.folder / "rnn.yaml").open("a", encoding="utf-8") as file:
        file.write("tokenizer: {vocab_size: 90}\n")
    with pytest.raises(ValueError, match=r"differ in tokenizer.vocab_size \(37000 and 90\)"):
        load_runs("letters", task, task.budgets[0], tmp_path)


def test_bleu_needs_a_test_corpus(task, tmp_path):
    task.data = {}
    with pytest.raises(ValueError, match=r"quality.letters.data.test is missing"):
        load_runs("letters", task, task.budgets[0], tmp_path)


def test_words_have_every_listed_pronunciation_as_reference(task, tiny_run, tmp_path):
    corpus = {"cat": ["K AE T"], "ta": ["T AA", "T AH"]}
    (tiny_run.folder / "test.json").write_text(json.dumps(corpus), encoding="utf-8")
    task.metric = "word error rate"
    sources, references = load_test_set("words", task, load_runs("words", task, task.budgets[0], tmp_path)["RNN"])
    assert (sources, references) == (["c a t", "t a"], [["K AE T"], ["T AA", "T AH"]])


class Letters:
    """A tokenizer with a token for each letter."""

    def __call__(self, texts):
        return {"input_ids": [list(text) for text in texts]}


@pytest.mark.parametrize("lengths", [[5], [3, 3, 3, 3, 3], [1, 2, 3, 4, 5, 6, 7, 8], [1, 1, 1, 1, 1, 9]])
def test_length_buckets_partition_the_sentences_and_keep_equal_lengths_together(lengths):
    buckets = quality._length_buckets(["x" * length for length in lengths], Letters())
    assert sorted(i for _, indices in buckets for i in indices) == list(range(len(lengths)))
    found = [[lengths[i] for i in indices] for _, indices in buckets]
    assert all(max(low) < min(high) for low, high in itertools.pairwise(found))
    assert len(buckets) <= 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"runs": {"Transformer": "a.yaml"}}, "quality.letters.runs=.* must name at least two"),
        ({"runs": {"GRU": "a.yaml", "LSTM": "b.yaml"}}, "quality.letters.runs must have one named 'Transformer'"),
        ({"updates": 0}, "quality.letters.updates=0 must be at least 1"),
        ({"updates": [1, 0]}, r"quality.letters.updates=\[1, 0\] must be a list of numbers, each at least 1"),
        ({"minutes": 0.0}, "quality.letters.minutes=0.0 must be greater than 0"),
        ({"minutes": []}, r"quality.letters.minutes=\[\] must be a list of numbers, each greater than 0"),
    ],
)
def test_impossible_tasks_are_refused(tmp_path, changes, message):
    values = {"runs": {"Transformer": "a.yaml", "RNN": "b.yaml"}, "metric": "BLEU", "updates": 1, "minutes": 1.0}
    config = {"output_dir": "out", "quality": {"letters": values | changes}}
    (tmp_path / "compare.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        load_compare_config(tmp_path / "compare.yaml")
