# SPDX-License-Identifier: Apache-2.0
"""Successive halving with a formula in place of training."""

import json
from collections import Counter
from pathlib import Path

import pytest

from tests.tuning.conftest import ExampleSweep
from vanilla_transformer.training.configuration import RunConfig


def last_scores(run: dict, rung: int) -> dict[int, float]:
    return {trial["number"]: trial["rungs"][rung]["score"] for trial in run["trials"] if len(trial["rungs"]) > rung}


def test_all_runs_get_the_same_trials_with_the_same_budgets(example: ExampleSweep):
    example.run()
    # 36 updates, and a third for each rung before; 9, 3 and 1 trials, and the run's own settings in each rung.
    expected = {4: 9 + 1, 12: 3 + 1, 36: 1 + 1}
    for kind in ("rnn_seq2seq", None):
        runs = [run for run in example.trained if run.model.get("model_type") == kind]
        assert Counter(run.training.max_updates for run in runs) == expected


def test_runs_with_the_same_space_begin_with_the_same_settings(example: ExampleSweep):
    runs = example.run(run_space={"RNN": {"model": {"dropout": [0.0, 0.1]}}})["runs"]
    rates = {name: [trial["settings"]["optimizer.learning_rate_scale"] for trial in run["trials"]]
             for name, run in runs.items()}  # fmt: skip
    assert rates["Transformer"] == rates["RNN"]
    assert len(set(rates["RNN"])) == 10


@pytest.mark.parametrize("metric", ["word error rate", "BLEU"])
def test_the_best_of_a_rung_and_the_runs_own_settings_survive(example: ExampleSweep, metric: str):
    run = example.run(metric=metric)["runs"]["RNN"]
    sign = 1 if metric == "BLEU" else -1
    for rung, count in enumerate((3, 1)):
        others = {number: score for number, score in last_scores(run, rung).items() if number != 0}
        best = sorted(others, key=lambda number: sign * others[number], reverse=True)[:count]
        assert set(last_scores(run, rung + 1)) == {0, *best}
    final = last_scores(run, 2)
    assert run["best"] == max(final, key=lambda number: sign * final[number])


def test_a_trial_is_a_run_of_its_own_with_its_own_end(example: ExampleSweep):
    example.run()
    folders = [run.training.output_dir for run in example.trained]
    assert len(set(folders)) == len(folders)
    assert all((run.training.max_minutes, run.training.max_epochs) == (None, None) for run in example.trained)


def test_minutes_are_the_budget_too(example: ExampleSweep):
    example.score = lambda run: run.optimizer.learning_rate_scale
    example.run(updates=None, minutes=9)
    assert {(run.training.max_minutes, run.training.max_updates) for run in example.trained} == {
        (1, None), (3, None), (9, None)
    }  # fmt: skip


def test_the_test_set_is_not_read(example: ExampleSweep):
    example.run(data={"validation": example.load().data["validation"], "test": {"path": "test.tsv"}})
    assert all(run.data.test is None for run in example.trained)


@pytest.mark.parametrize("after", [0, 1, 7, 19, 25])
def test_an_interrupted_sweep_ends_as_an_uninterrupted_one(example: ExampleSweep, after: int):
    whole = example.run(output_dir=str(example.folder / "whole"))
    train, score = example.trained.copy(), example.score
    example.trained.clear()

    def interrupted(run: RunConfig) -> float:
        if len(example.trained) > after:
            raise KeyboardInterrupt
        return score(run)

    example.score = interrupted
    with pytest.raises(KeyboardInterrupt):
        example.run()
    assert len(example.trained) == after + 1
    example.score = score
    assert example.run() == whole
    assert len(example.trained) == len(train) + 1  # the trial that was interrupted


def test_an_interrupted_trial_does_not_go_on_with_other_settings(example: ExampleSweep):
    def interrupted(run: RunConfig) -> float:
        raise KeyboardInterrupt

    example.score = interrupted
    with pytest.raises(KeyboardInterrupt):
        example.run()
    with pytest.raises(ValueError, match="000/rung_1/outcome.json was made with other settings"):
        example.run(training={"seed": 2})


def test_a_finished_sweep_trains_nothing(example: ExampleSweep):
    results = example.run()
    count = len(example.trained)
    assert example.run() == results
    assert len(example.trained) == count
    assert json.loads((example.folder / "out" / "trials.json").read_text("utf-8")) == results


def test_more_trials_go_on_from_those_that_there_are(example: ExampleSweep):
    before = example.run()["runs"]["RNN"]["trials"]
    count = len(example.trained)
    after = example.run(trials=12)["runs"]["RNN"]["trials"]
    assert [trial["settings"] for trial in after[:10]] == [trial["settings"] for trial in before]
    first_rung = [run for run in example.trained[count:] if run.training.max_updates == 4]
    assert len(first_rung) == 2 * 3


def test_a_trial_that_fails_is_counted_and_the_sweep_goes_on(example: ExampleSweep):
    score = example.score

    def fails_often(run: RunConfig) -> float:
        if run.optimizer.learning_rate_scale > 1.5:
            raise ValueError("10 updates in a row were skipped")
        return score(run)

    example.score = fails_often
    run = example.run()["runs"]["Transformer"]
    failed = [trial for trial in run["trials"] if trial["rungs"][0]["score"] is None]
    assert 0 < len(failed) < 9
    assert all(trial["rungs"][0]["error"] == "10 updates in a row were skipped" for trial in failed)
    assert all(len(trial["rungs"]) == 1 for trial in failed)


def test_a_run_that_fails_with_its_own_settings_ends_the_sweep(example: ExampleSweep):
    def fails(run: RunConfig) -> float:
        raise ValueError("the corpus is empty")

    example.score = fails
    with pytest.raises(ValueError, match="Transformer with its own settings: the corpus is empty"):
        example.run()


def test_settings_that_do_not_go_together_are_a_failed_trial(example: ExampleSweep):
    space = {"model": {"d_model": [16, 18], "num_heads": [2, 8]}}
    run = example.run(runs={"one": "tiny.yaml"}, space=space, trials=3, rungs=1)["runs"]["one"]
    (failed,) = (trial for trial in run["trials"] if trial["rungs"][0]["score"] is None)
    assert failed["settings"] == {"model.d_model": 18, "model.num_heads": 8}
    assert "18" in failed["rungs"][0]["error"]
    assert len(example.trained) == 3


def test_every_setting_of_a_small_space_is_tried_once(example: ExampleSweep):
    space = {"model": {"dropout": [0.0, 0.1, 0.2, 0.3]}, "optimizer": {"warmup_steps": [10, 20, 30, 40]}}
    trials = example.run(space=space, trials=15, rungs=1)["runs"]["Transformer"]["trials"]
    assert len({tuple(trial["settings"].values()) for trial in trials}) == 16


def test_named_settings_are_tried_first(example: ExampleSweep):
    space = {"optimizer": {"warmup_steps": [10, 20, 30]}, "training": {"tokens_per_update": [None, 200]}}
    first = [
        {"optimizer": {"warmup_steps": 30}},
        {"optimizer": {"warmup_steps": 10}, "training": {"tokens_per_update": 200}},
    ]
    trials = example.run(space=space, first=first, trials=3, rungs=1)["runs"]["RNN"]["trials"]
    assert [list(trial["settings"].values()) for trial in trials[:3]] == [[20, None], [30, None], [10, 200]]


def test_a_key_may_shrink_with_the_budget(example: ExampleSweep):
    scaled = {"optimizer.warmup_steps": 1, "optimizer.learning_rate_scale": 0.5, "training.checkpoint_every_minutes": 1}
    example.run(scaled=scaled, space={"optimizer": {"warmup_steps": [9, 20, 36, 18]}}, trials=3, rungs=2)
    found = {(run.training.max_updates, run.optimizer.warmup_steps) for run in example.trained}
    assert found >= {(36, 20), (12, 7), (12, 3), (12, 12), (12, 6)}  # a third, to the nearest update
    # The peak of equation 3 stays as it is.
    first, last = (next(run.optimizer for run in example.trained if run.training.max_updates == n) for n in (12, 36))
    peaks = [each.learning_rate_scale * each.warmup_steps**-0.5 for each in (first, last)]
    assert peaks[0] == pytest.approx(peaks[1], rel=0.05)


def test_a_folder_of_something_else_is_refused(example: ExampleSweep):
    (example.folder / "out").mkdir()
    (example.folder / "out" / "thesis.txt").write_text("", encoding="utf-8")
    with pytest.raises(ValueError, match="out holds files, and no sweep"):
        example.run()


@pytest.mark.parametrize("changes", [{"updates": 72}, {"rungs": 2}, {"metric": "BLEU"}])
def test_other_settings_in_the_same_folder_are_refused(example: ExampleSweep, changes: dict):
    example.run()
    with pytest.raises(ValueError, match="000/rung_1/outcome.json was made with other settings"):
        example.run(**changes)


def test_the_quickstarts_corpus_is_written_where_it_is_missing(example: ExampleSweep, monkeypatch, tmp_path: Path):
    from vanilla_transformer.tuning import sweep as module

    written = []
    monkeypatch.setattr(module, "write_pronunciation_corpus", written.append)
    files = {"source": str(tmp_path / "data" / "train.spelling"), "target": str(tmp_path / "data" / "train.phonemes")}
    example.run(data={"train": files, "validation": files})
    assert written == [tmp_path / "data"]
