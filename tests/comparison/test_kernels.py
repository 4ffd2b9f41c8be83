# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, PreTrainedModel

from vanilla_transformer.comparison.kernels import describe_kernels, random_batch
from vanilla_transformer.training.configuration import model_config_of

RNN = {"model_type": "rnn_seq2seq", "embedding_size": 8, "hidden_size": 8, "attention": "none", "num_layers": 1}
RNN |= {"input_feeding": "none", "bidirectional": False}
TRANSFORMER = {"model_type": "vanilla_transformer", "d_model": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}


def model_of(section: dict) -> PreTrainedModel:
    return AutoModelForSeq2SeqLM.from_config(model_config_of(section, vocab_size=20)).train()


def kernels_of(section: dict, *lengths: int) -> dict:
    model = model_of(section)
    return describe_kernels(model, [random_batch(model, 2, length) for length in lengths], is_bf16=False)


def test_a_gru_calls_operators_for_each_token():
    found = kernels_of(RNN | {"cell": "gru"}, 4, 8)
    assert found["calls_per_token"] > 1
    assert found["calls_per_token"] == kernels_of(RNN | {"cell": "gru"}, 6, 12)["calls_per_token"]


def test_a_transformer_calls_no_operator_for_each_token():
    found = kernels_of(TRANSFORMER, 4, 8)
    assert (found["calls_per_token"], found["calls_per_token_padded"]) == (0, 0)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch has no oneDNN here")
def test_an_lstm_is_fused_on_a_cpu_but_not_over_padding():
    found = kernels_of(RNN | {"cell": "lstm"}, 8, 16)
    assert found["calls_per_token"] < 1 < found["calls_per_token_padded"]


def test_the_operator_takes_the_largest_share():
    found = kernels_of(TRANSFORMER, 4, 8)
    assert found["operator"].startswith("aten::")
    assert 0 < found["share"] <= 1


def test_gradients_of_the_profiled_passes_are_removed():
    model = model_of(RNN | {"cell": "tanh"})
    describe_kernels(model, [random_batch(model, 2, length) for length in (2, 4)], is_bf16=False)
    assert all(parameter.grad is None for parameter in model.parameters())
