# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from vanilla_transformer.comparison.fairness import check_parameters, check_precision, check_runs


def test_parameters_within_five_percent_are_equal():
    check_parameters("speed.models", {"Transformer": 100_000, "GRU": 105_000})


def test_unequal_parameters_are_refused_with_both_names():
    with pytest.raises(ValueError, match="speed.models: GRU has 106,000 parameters and Transformer 100,000"):
        check_parameters("speed.models", {"Transformer": 100_000, "GRU": 106_000})


def test_a_precision_that_not_all_models_would_have_is_refused():
    models = {"Transformer": {"d_model": 16, "num_heads": 2}, "GRU": {"model_type": "rnn_seq2seq", "cell": "gru"}}
    check_precision("speed.precision", "no", models, torch.device("cuda"))
    check_precision("speed.precision", "bf16", models, torch.device("cpu"))
    check_precision("speed.precision", "bf16", {"Transformer": models["Transformer"]}, torch.device("cuda"))
    with pytest.raises(ValueError, match="speed.precision='bf16': on cuda the recurrent layers of GRU would .*float32"):
        check_precision("speed.precision", "bf16", models, torch.device("cuda"))


def test_runs_may_differ_in_model_and_optimizer(tiny_run):
    rnn = ["model={model_type: rnn_seq2seq, cell: gru}", "optimizer.warmup_steps=7", "training.output_dir=elsewhere"]
    rnn += ["training.attention=eager"]
    check_runs("quality.letters", {"Transformer": tiny_run.load(), "RNN": tiny_run.load(*rnn)})


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("tokenizer.vocab_size=99", r"differ in tokenizer.vocab_size \(37000 and 99\)"),
        ("data.max_length=9", r"differ in data.max_length \(256 and 9\)"),
        ("generation.num_beams=2", r"differ in generation.num_beams \(4 and 2\)"),
        ("training.seed=2", r"differ in training.seed \(1 and 2\)"),
    ],
)
def test_a_difference_in_a_controlled_setting_is_named(tiny_run, override, message):
    runs = {"Transformer": tiny_run.load(), "RNN": tiny_run.load(override)}
    with pytest.raises(ValueError, match=f"quality.letters: the runs of Transformer and RNN {message}"):
        check_runs("quality.letters", runs)
