# SPDX-License-Identifier: Apache-2.0
"""Every value of a space is checked before any training."""

import pytest
import yaml
from optuna.distributions import CategoricalDistribution, IntDistribution

from tests.tuning.conftest import ExampleSweep
from vanilla_transformer.training.configuration import load_run_config
from vanilla_transformer.tuning.space import tuned_runs

RATE = {"learning_rate_scale": {"low": 0.1, "high": 10}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"updates": None}, "minutes=None and updates=None: give one of them"),
        ({"minutes": 3}, "minutes=3.0 and updates=36: give one of them"),
        ({"trials": 8}, "trials=8 must be at least 9, so that rungs=3 with reduction_factor=3 leave one"),
        ({"updates": 8}, "updates=8 must be at least 9, or the first rung has no update"),
        ({"first": [{}] * 10}, "trials=9 must be at least 10, the number of those in first"),
        ({"runs": {}}, "runs={} must name at least one"),
        ({"metric": "loss"}, "metric='loss': expected 'word error rate' or 'BLEU' or 'perplexity'"),
        ({"rungs": 0}, "rungs=0 must be at least 1"),
        ({"reduction_factor": 1}, "reduction_factor=1 must be at least 2"),
        ({"data": {}}, "runs.Transformer: data.train or data.validation is missing"),
        ({"training": {"seed": "x"}}, "runs.Transformer: training.seed='x': expected int, got str"),
        ({"scaled": {"optimizer.warmup": 1}}, "runs.Transformer: unknown key optimizer.warmup"),
        ({"run_space": {"GRU": {}}}, "run_space.GRU: there is no such run; there are Transformer, RNN"),
        (
            {"trials": 9, "space": {"model": {"dropout": [0.0, 0.1]}}},
            "trials=9: the space of Transformer has 1 settings",
        ),
        ({"first": [{"model": {"dropout": 0.1}}]}, "first: no run has all of model.dropout in its space"),
        (
            {"first": [{"optimizer": {"learning_rate_scale": 11}}]},
            "first, for Transformer: .*learning_rate_scale, 11.0",
        ),
    ],
)
def test_impossible_sweeps_are_refused(example: ExampleSweep, changes: dict, message: str):
    with pytest.raises(ValueError, match=message):
        tuned_runs(example.load(**changes))


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"optimizer": RATE | {"warmup": [1]}}, "space of Transformer, optimizer.warmup: unknown key optimizer.warmup"),
        ({"optimiser": RATE}, "space of Transformer, optimiser: it is none of the sections data, tokenizer"),
        (
            {"optimizer": RATE | {"beta1": [0.9, 1.5]}},
            "optimizer.beta1: optimizer.beta1=1.5 must be at least 0 and less",
        ),
        ({"optimizer": RATE | {"beta1": 0.9}}, "optimizer.beta1: 0.9 must be a list of values"),
        ({"optimizer": {"eps": {"low": 1e-9, "high": 0}}}, "optimizer.eps: optimizer.eps=0.0 must be greater than 0"),
        ({"optimizer": {"eps": {"low": 1e-7, "high": 1e-9}}}, "space of Transformer, optimizer.eps: `low <= high`"),
        ({"optimizer": {"warmup_steps": [1, 2]}}, "warmup_steps: the run's own value, 20, must be in it"),
        (
            {"optimizer": {"warmup_steps": {"low": 30, "high": 90}}},
            "warmup_steps: the run's own value, 20, must be in it",
        ),
        ({"optimizer": {"max_grad_norm": {"low": 0.1, "high": 9}}}, "the run's own value, None, must be in it"),
        ({"optimizer": 3}, "space.optimizer=3 must be a section of keys"),
        ({"model": {"num_heads": [2, 4]}}, "space of RNN, model.num_heads: unknown key model.num_heads"),
        ({"training": {"max_updates": [1, 2]}}, "training.max_updates: a sweep does not change training.max_updates"),
        ({"data": {"max_length": [1, 256]}}, "data.max_length: a sweep does not change data.max_length"),
        ({"model": {"model_type": ["rnn_seq2seq"]}}, "model.model_type: a sweep does not change model.model_type"),
    ],
)
def test_impossible_spaces_are_refused(example: ExampleSweep, section: dict, message: str):
    space = {"optimizer": RATE} | section
    with pytest.raises(ValueError, match=message):
        tuned_runs(example.load(space=space))


def test_perplexities_of_several_tokenizers_are_not_compared(example: ExampleSweep):
    space = {"optimizer": RATE, "tokenizer": {"vocab_size": [100, 37000]}}
    tuned_runs(example.load(space=space))
    with pytest.raises(ValueError, match="'perplexity' cannot compare tokenizers, which tokenizer.vocab_size changes"):
        tuned_runs(example.load(space=space, metric="perplexity"))


def test_runs_that_differ_in_more_than_the_model_are_refused(example: ExampleSweep):
    with (example.folder / "rnn.yaml").open("a", encoding="utf-8") as file:
        file.write("data: {max_length: 7}\n")
    with pytest.raises(ValueError, match="runs: the runs of Transformer and RNN differ in data.max_length"):
        tuned_runs(example.load())


def test_values_are_read_as_the_run_reads_them(example: ExampleSweep):
    space = yaml.safe_load(
        "{optimizer: {eps: ['1e-9', 1e-8], max_grad_norm: [null, 1], warmup_steps: {low: 1, high: 99}}}"
    )
    run = tuned_runs(example.load(space=space, trials=3, rungs=1))["RNN"]
    assert list(run.space.values()) == [
        CategoricalDistribution([1e-9, 1e-8]), CategoricalDistribution([None, 1.0]), IntDistribution(1, 99)
    ]  # fmt: skip
    assert run.own == {"optimizer.eps": 1e-9, "optimizer.max_grad_norm": None, "optimizer.warmup_steps": 20}


def test_a_default_of_the_model_is_its_own_value(example: ExampleSweep):
    config = example.load(run_space={"Transformer": {"model": {"norm_position": ["post", "pre"]}}})
    runs = tuned_runs(config)
    assert runs["Transformer"].own["model.norm_position"] == "post"
    assert "model.norm_position" not in runs["RNN"].space


def test_a_null_takes_a_key_out_of_the_space(example: ExampleSweep):
    config = example.load(space={"optimizer": RATE, "model": {"dropout": None}})
    assert list(tuned_runs(config)["RNN"].space) == ["optimizer.learning_rate_scale"]


DEPTH = {"shallow": {}, "deep": {"model": {"num_layers": 3}, "training": {"max_source_tokens": 50}}}


def test_a_choice_changes_several_keys_at_once(example: ExampleSweep):
    config = example.load(space={"optimizer": RATE, "depth": DEPTH}, first=[{"depth": "deep"}])
    run = tuned_runs(config)["Transformer"]
    assert run.own["depth"] == "shallow"
    assert run.first == [run.own | {"depth": "deep"}]
    for choice, expected in (("shallow", (1, 100)), ("deep", (3, 50))):
        trial = run.trial(config, run.own | {"depth": choice}, 2, example.folder)
        assert (trial.model["num_layers"], trial.training.max_source_tokens) == expected


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (
            {"depth": {"deep": DEPTH["deep"]}},
            "space of Transformer, depth: .*one of them is {name: {}}, the run as it is",
        ),
        ({"depth": [1, 2]}, "space of Transformer, depth: it is none of the sections"),
        ({"depth": DEPTH | {"deepest": {"model": 3}}}, "depth.deepest.model=3 must be a section of keys"),
        (
            {"depth": DEPTH | {"deepest": {"model": {"num_layers": 0}}}},
            "depth: model.num_layers=0 must lie between 1 and",
        ),
        ({"depth": DEPTH | {"long": {"training": {"max_updates": 9}}}}, "a sweep does not change training.max_updates"),
        ({"depth": DEPTH, "model": {"num_layers": [1, 2]}}, "depth and model.num_layers both change model.num_layers"),
    ],
)
def test_impossible_choices_are_refused(example: ExampleSweep, space: dict, message: str):
    with pytest.raises(ValueError, match=message):
        tuned_runs(example.load(runs={"Transformer": "tiny.yaml"}, space={"optimizer": RATE} | space))


def test_a_name_that_no_alternative_has_is_refused(example: ExampleSweep):
    with pytest.raises(ValueError, match="first, for Transformer: depth, 'huge', must be in it"):
        tuned_runs(example.load(space={"optimizer": RATE, "depth": DEPTH}, first=[{"depth": "huge"}]))


def test_overrides_give_the_settings_to_a_run(example: ExampleSweep):
    precision, norm = {"training": {"mixed_precision": ["no", "bf16"]}}, {"max_grad_norm": [None, 1.0]}
    config = example.load(space=precision | {"optimizer": RATE | norm, "depth": DEPTH})
    run = tuned_runs(config)["Transformer"]
    assert run.overrides(run.own) == []
    best = run.own | {"optimizer.max_grad_norm": 1.0, "training.mixed_precision": "bf16", "depth": "deep"}
    given = load_run_config(example.folder / "tiny.yaml", run.overrides(best))
    assert (given.optimizer.max_grad_norm, given.training.mixed_precision) == (1.0, "bf16")
    assert (given.model["num_layers"], given.training.max_source_tokens) == (3, 50)
    assert given.optimizer.learning_rate_scale == run.own["optimizer.learning_rate_scale"]


def test_overrides_go_back_to_null_and_no(example: ExampleSweep):
    space = {"training": {"mixed_precision": ["no", "bf16"]}, "optimizer": {"max_grad_norm": [None, 1.0]}}
    (example.folder / "tuned.yaml").write_text(
        "{extends: tiny.yaml, training: {mixed_precision: bf16}, optimizer: {max_grad_norm: 1}}", encoding="utf-8"
    )
    config = example.load(runs={"tuned": "tuned.yaml"}, space=space, trials=3, rungs=1)
    overrides = tuned_runs(config)["tuned"].overrides(
        {"training.mixed_precision": "no", "optimizer.max_grad_norm": None}
    )
    given = load_run_config(example.folder / "tuned.yaml", overrides)
    assert (given.training.mixed_precision, given.optimizer.max_grad_norm) == ("no", None)
