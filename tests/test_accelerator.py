# SPDX-License-Identifier: Apache-2.0
"""A smoke test on a machine with an accelerator: `pytest -m gpu`."""

import math

import pytest
import torch

from tests.benchmark.train_examples import tiny_benchmark
from vanilla_transformer.inference.model_folder import default_device

HAS_ACCELERATOR = torch.accelerator.is_available()
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not HAS_ACCELERATOR, reason="torch finds no accelerator on this machine"),
]
MODELS = {
    "transformer": [],
    "rnn": ["model={model_type: rnn_seq2seq, embedding_size: 16, hidden_size: 16}", "training.attention=eager"],
}


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("model", MODELS)
def test_a_run_updates_validates_and_translates(tiny_run, model, precision):
    from vanilla_transformer.inference.translator import Translator

    run = tiny_run.train(*tiny_run.validation(), *MODELS[model], f"training.mixed_precision={precision}")
    assert run.state.accelerator.device.type == default_device().type
    assert {parameter.device.type for parameter in run.state.bare_model().parameters()} == {default_device().type}
    assert run.state.progress.updates == 8
    assert run.state.progress.skipped_updates == 0
    assert run.state.progress.best_score >= 0  # it was validated
    assert len(Translator.from_pretrained(tiny_run.output_dir / "model").translate(["a b c", "d"])) == 2


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_gradients_are_those_of_the_cpu(tiny_run, attention):
    run = tiny_run.train("training.max_updates=1")
    model, batch = run.state.bare_model(), next(iter(run.batches))
    model.set_attn_implementation(attention)
    model.eval()  # no dropout
    norms = []
    for device in (default_device(), torch.device("cpu")):
        model.to(device).zero_grad()
        model(**{name: tensor.to(device) for name, tensor in batch.items()}, skip_logits=True).loss.backward()
        norms.append(float(torch.nn.utils.get_total_norm([parameter.grad for parameter in model.parameters()])))
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)
    assert math.isfinite(norms[0])


def test_the_benchmark_of_training_measures_every_case(tmp_path):
    from vanilla_transformer.benchmark.train import benchmark_training
    from vanilla_transformer.benchmark.train_report import train_report

    config = tiny_benchmark("compiled=[false, true]", "lengths=[6]", f"output={tmp_path}/train.json")
    results = benchmark_training(config, print)
    assert len(results["cases"]) == 2 * 2  # precisions, compiled or not
    assert all(result["tokens_per_second"] > 0 for case in results["cases"] for result in case["results"].values())
    assert "## Peak memory" in train_report(results)
