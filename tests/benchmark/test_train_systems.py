# SPDX-License-Identifier: Apache-2.0
from importlib.util import find_spec

import pytest
import torch
from torch import nn

from tests.benchmark.train_examples import tiny_benchmark
from vanilla_transformer.benchmark import train_systems
from vanilla_transformer.benchmark.train_configuration import MARIAN, OURS, RNN, SYSTEMS, TORCH, X_TRANSFORMERS
from vanilla_transformer.benchmark.train_systems import (
    TorchTransformer,
    TrainStep,
    build,
    loss_of,
    random_batch,
    skip_reasons,
)
from vanilla_transformer.exporting.marian import as_marian

CPU = torch.device("cpu")
INSTALLED = [name for name in SYSTEMS if name not in skip_reasons([name])]


def test_a_batch_has_as_many_tokens_as_fit_and_no_padding():
    batch = random_batch(24, 40, 6, CPU)
    assert {tensor.shape for tensor in batch.values()} == {(6, 6)}
    assert batch["input_ids"].min() >= 5  # no special token
    torch.testing.assert_close(batch["labels"].flip(1), batch["input_ids"])


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", INSTALLED)
def test_updates_lower_the_loss_of_their_batch(name, precision):
    step, batch = TrainStep(name, tiny_benchmark(), "tiny", 6, CPU, precision), random_batch(24, 12, 6, CPU)
    step.optimizer.param_groups[0]["lr"] = 1e-2
    first = float(step(batch, 1))
    assert float(step(batch, 30)) < 0.8 * first


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_losses_of_ours_and_marian_are_equal_with_the_same_weights(attention):
    config = tiny_benchmark().model_config("tiny", "transformer")
    config.dropout = config.label_smoothing = 0.0
    ours: nn.Module = build(OURS, config, 6, attention)
    batch = random_batch(24, 12, 6, CPU)
    loss = loss_of(OURS, ours, batch)
    torch.testing.assert_close(loss_of(MARIAN, as_marian(ours, 6), batch), loss)
    marian = build(MARIAN, config, 6, attention)
    assert marian.config._attn_implementation == attention
    assert marian.config.dropout == 0.0
    assert sum(p.numel() for p in as_marian(ours, 6).parameters()) == sum(p.numel() for p in marian.parameters())


def test_the_loss_of_nn_transformer_is_the_mean_over_its_tied_logits():
    config = tiny_benchmark().model_config("tiny", "transformer")
    model = TorchTransformer(config, 6).eval()
    batch = random_batch(24, 12, 6, CPU)
    with torch.no_grad():
        model.transformer.decoder.norm.weight.zero_()
        model.transformer.decoder.norm.bias.copy_(torch.arange(16.0) / 16)  # the state of every token
        logits = model.embedding.weight @ (torch.arange(16.0) / 16)
        expected = -logits.log_softmax(0)[batch["labels"]].mean()
        torch.testing.assert_close(loss_of(TORCH, model, batch), expected)


def test_the_target_of_nn_transformer_sees_no_later_token():
    config = tiny_benchmark().model_config("tiny", "transformer")
    model, batch = TorchTransformer(config, 6).eval(), random_batch(24, 6, 6, CPU)
    seen = []
    model.transformer.register_forward_hook(lambda module, arguments, output: seen.append(output))
    for last in (7, 8):  # of the tokens that the decoder reads
        batch["labels"][:, 4] = last
        loss_of(TORCH, model, batch)
    torch.testing.assert_close(seen[0][:, :5], seen[1][:, :5])
    assert not torch.equal(seen[0][:, 5], seen[1][:, 5])


def test_the_rnn_has_its_own_model():
    step = TrainStep(RNN, tiny_benchmark(), "tiny", 8, CPU, "float32")
    assert step.model.config.model_type == "rnn_seq2seq"


def test_a_missing_package_is_named():
    missing = find_spec("x_transformers") is None
    assert skip_reasons(list(SYSTEMS)) == (
        {X_TRANSFORMERS: "the package x-transformers is not installed"} if missing else {}
    )
    assert skip_reasons([OURS, MARIAN]) == {}


def test_ours_is_compiled_by_layer_and_others_as_a_whole(monkeypatch):
    layers, wholes = [], []
    monkeypatch.setattr(train_systems, "compile_layers", layers.append)
    monkeypatch.setattr(nn.Module, "compile", lambda module: wholes.append(module))
    steps = [TrainStep(name, tiny_benchmark(), "tiny", 6, CPU, "float32") for name in (OURS, TORCH)]
    for step in steps:
        step.compile()
    assert (layers, wholes) == ([steps[0].model], [steps[1].model])
