# SPDX-License-Identifier: Apache-2.0
"""The model of a run: its layers compiled in place, by backends that need no C++ compiler."""

import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch._dynamo.utils import counters

from tests.conftest import TinyRun
from vanilla_transformer import (
    RNNSeq2SeqConfig,
    RNNSeq2SeqForConditionalGeneration,
    VanillaTransformerConfig,
    VanillaTransformerForConditionalGeneration,
)
from vanilla_transformer.training import model as training_model
from vanilla_transformer.training.finetuning import load_finetuning_config
from vanilla_transformer.training.model import MAX_GRAPHS, compile_layers, load_base_model
from vanilla_transformer.training.validation import validate

HANDFUL = 10  # graphs of both kinds of layers


def two_models(**fields) -> list[VanillaTransformerForConditionalGeneration]:
    """With the same weights, in train mode."""
    special: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    config = VanillaTransformerConfig(vocab_size=20, d_model=8, d_ff=16, num_layers=2, num_heads=2, **special, **fields)
    models = [VanillaTransformerForConditionalGeneration(config).train() for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    return models


def batches(number: int) -> Iterator[dict[str, torch.Tensor]]:
    """Of many shapes, every other one with padding."""
    draws = random.Random(1)
    for i in range(number):
        pairs, source, target = (draws.randint(2, 12) for _ in range(3))
        ids, labels = torch.randint(3, 20, (pairs, source)), torch.randint(3, 20, (pairs, target))
        mask = torch.ones_like(ids)
        if i % 2:
            mask[0, -1], labels[0, -1] = 0, -100
        yield {"input_ids": ids, "attention_mask": mask, "labels": labels}


def gradients(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(**batch, num_items_in_batch=torch.tensor(7), skip_logits=True).loss.backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


def test_compiled_layers_share_a_handful_of_graphs_for_batches_of_many_shapes():
    _, model = two_models(dropout=0.1, activation_dropout=0.1)
    compile_layers(model, backend="eager")
    for batch in batches(30):
        gradients(model, batch)
    assert 2 <= counters["stats"]["unique_graphs"] <= HANDFUL < MAX_GRAPHS
    assert not counters["graph_break"]


def test_compiled_layers_have_the_gradients_and_names_of_plain_ones():
    plain, compiled = two_models(dropout=0.0)
    compile_layers(compiled, backend="eager")
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    assert compiled.can_build_decoder()
    for batch in batches(6):
        expected = gradients(plain, batch)
        for name, gradient in gradients(compiled, batch).items():
            torch.testing.assert_close(gradient, expected[name], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("fields", [{}, {"norm_position": "pre", "final_layer_norm": True}], ids=["post", "pre"])
def test_layers_compiled_by_inductor_have_the_gradients_of_plain_ones(fields):
    plain, compiled = two_models(dropout=0.0, **fields)
    compile_layers(compiled)
    for batch in batches(6):
        expected = gradients(plain, batch)
        for name, gradient in gradients(compiled, batch).items():
            torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-5)


@pytest.fixture
def compiled_run(tiny_run: TinyRun, monkeypatch) -> TinyRun:
    monkeypatch.setattr(training_model, "compile_layers", partial(compile_layers, backend="eager"))
    return tiny_run


@pytest.mark.parametrize(
    "options",
    [[], pytest.param(["training.gradient_checkpointing=true"], marks=pytest.mark.slow)],
    ids=["plain", "checkpointing"],
)
def test_a_compiled_run_is_resumed_to_the_bit_and_validated_by_the_fast_decoder(compiled_run, options):
    options = ["training.compile=true", *options, *compiled_run.validation(), "training.validate_every=2"]
    folders = {name: f"training.output_dir={compiled_run.folder / name}" for name in ("whole", "parts")}
    compiled_run.train(*options, folders["whole"])
    compiled_run.train(*options, folders["parts"], "training.max_updates=5")
    run = compiled_run.train(*options, folders["parts"])
    graphs = counters["stats"]["unique_graphs"]
    assert graphs > 0
    assert run.state.bare_model().can_build_decoder()
    validate(run)
    assert counters["stats"]["unique_graphs"] == graphs
    expected = load_file(compiled_run.folder / "whole" / "model" / "model.safetensors")
    for name, weight in load_file(compiled_run.folder / "parts" / "model" / "model.safetensors").items():
        assert torch.equal(weight, expected[name]), name


RNN = "model={model_type: rnn_seq2seq, embedding_size: 16, hidden_size: 12}"


def test_gradient_checkpointing_leaves_the_fast_decoder(tiny_run):
    run = tiny_run.train("training.gradient_checkpointing=true", "training.max_updates=1")
    assert run.state.bare_model().can_build_decoder()


def test_a_compiled_rnn_is_refused(tiny_run):
    with pytest.raises(ValueError, match=r"^training\.compile=true is for the Transformer: .* unroll an RNN's steps"):
        tiny_run.load(RNN, "training.attention=eager", "training.compile=true")


def test_a_compiled_rnn_is_refused_in_fine_tuning(model_folder, tmp_path: Path):
    config = RNNSeq2SeqConfig(vocab_size=12, embedding_size=8, hidden_size=8)
    RNNSeq2SeqForConditionalGeneration(config).save_pretrained(tmp_path / "rnn")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "rnn" / name).write_bytes((model_folder / name).read_bytes())
    values = {"model": str(tmp_path / "rnn"), "data": {}, "training": {"output_dir": "x", "compile": True}}
    (tmp_path / "finetune.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    with pytest.raises(ValueError, match=r"training\.compile=true is for the Transformer"):
        load_base_model(load_finetuning_config(tmp_path / "finetune.yaml"))


def test_dynamo_of_accelerate_launch_is_refused_before_a_folder_is_made(tiny_run, monkeypatch):
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR")
    with pytest.raises(
        ValueError, match=r"dynamo_backend='INDUCTOR' of accelerate launch .*set training\.compile=true"
    ):
        tiny_run.train()
    assert not tiny_run.output_dir.exists()
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "NO")  # what it says by default
    tiny_run.train("training.max_updates=1")
