# SPDX-License-Identifier: Apache-2.0
"""A run that was interrupted in the middle of an epoch ends as the one that was not: in every byte that it keeps."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from tests.conftest import TinyRun
from tests.distributed.launching import FSDP2, start_together, train_here, weights
from vanilla_transformer.distributed.fsdp import is_sharded, unsharded_copy
from vanilla_transformer.training.configuration import load_run_config
from vanilla_transformer.training.setup import set_up
from vanilla_transformer.training.validation import validate

SMALL_BATCHES = ["training.max_source_tokens=40", "training.max_target_tokens=40"]
STREAM = ["data.train.streaming=true", "data.max_length=20"]
RNN = ["model={model_type: rnn_seq2seq, embedding_size: 16, hidden_size: 12, dropout: 0.1}", "training.attention=eager"]
NAMES = {(): "Transformer", tuple(STREAM): "stream", tuple(RNN): "RNN"}


def train_by(processes: int, tiny_run: TinyRun, overrides: list[str], environment: dict[str, str]) -> None:
    if processes == 1:
        tiny_run.train(*overrides)
    else:
        start_together(train_here, processes, tiny_run.config, overrides, **environment)


def contents(checkpoint: Path) -> dict:
    """All that a run goes on from, but for the time that it took; its tokenizer has a folder of its own."""
    found: dict = {path.name: path.read_bytes() for path in checkpoint.glob("*.safetensors")}
    found |= {path.name: json.loads(path.read_text(encoding="utf-8")) for path in checkpoint.glob("*.json")}
    del found["manifest.json"], found["tokenizer_config.json"]
    del found["progress.json"]["seconds"], found["progress.json"]["agreed_seconds"]
    return found


def case(processes: int, accumulation: int, *options: str, fsdp2: bool = False):
    kind = [f"{processes} processes", *["fsdp2"] * fsdp2, f"accumulation {accumulation}", NAMES[options]]
    marks = [pytest.mark.slow] * (processes > 1)
    return pytest.param(processes, accumulation, options, FSDP2 if fsdp2 else {}, id=", ".join(kind), marks=marks)


@pytest.mark.parametrize(
    ("processes", "accumulation", "options", "environment"),
    [
        case(1, 3),
        case(1, 3, *STREAM),
        case(2, 1),
        case(3, 1),
        case(2, 2),
        case(2, 2, *STREAM),
        case(2, 2, fsdp2=True),
        case(2, 1, *STREAM, fsdp2=True),
        case(2, 2, *RNN, fsdp2=True),
    ],
)
def test_an_interrupted_run_ends_as_the_uninterrupted_one(tiny_run, processes, accumulation, options, environment):
    """Dropout is on, and validation comes in between."""
    overrides = [*SMALL_BATCHES, *options, *tiny_run.validation(), "training.validate_every=4"]
    overrides.append(f"training.gradient_accumulation_steps={accumulation}")
    ends = [7, 12]
    whole, parts = tiny_run.folder / "whole", tiny_run.folder / "parts"
    for folder, updates in ((whole, ends[-1]), *((parts, end) for end in ends)):
        settings = [f"training.output_dir={folder}", f"training.max_updates={updates}"]
        train_by(processes, tiny_run, [*overrides, *settings], environment)
        if updates == ends[0]:
            progress = json.loads(
                (folder / "checkpoints" / "update-00000007" / "progress.json").read_text(encoding="utf-8")
            )
            assert progress["batches"] > 0  # in the middle of an epoch
            assert progress["processes"] == processes
    expected = contents(whole / "checkpoints" / "update-00000012")
    assert len([name for name in expected if name.startswith("random_states_")]) == processes
    found = contents(parts / "checkpoints" / "update-00000012")
    assert found.keys() == expected.keys()
    assert [name for name in expected if found[name] != expected[name]] == []


@pytest.mark.parametrize("options", [[], pytest.param(RNN, marks=pytest.mark.slow)], ids=["Transformer", "RNN"])
def test_one_process_resumes_what_fsdp2_sharded(tiny_run, options):
    """And writes an ordinary folder; the weights it starts from score as they did among two."""
    overrides = [*SMALL_BATCHES, *options, *tiny_run.validation(), "training.validate_every=1000"]
    start_together(train_here, 2, tiny_run.config, [*overrides, "training.max_updates=4"], **FSDP2)
    results = json.loads((tiny_run.output_dir / "results.json").read_text(encoding="utf-8"))
    assert results["devices"] == 2
    names = load_file(tiny_run.output_dir / "model" / "model.safetensors").keys()
    AcceleratorState._reset_state(reset_partial_state=True)
    run = set_up(tiny_run.load(*overrides))
    assert run.state.progress.updates == 4
    assert results["parameters"] == run.state.bare_model().num_parameters()
    figures = asdict(validate(run))
    for name in ("loss", "perplexity", "bleu"):
        assert figures[name] == pytest.approx(results["validation"][name], rel=1e-5)
    run = tiny_run.train(*overrides, "training.max_updates=6")
    assert run.state.progress.updates == 6
    assert load_file(tiny_run.output_dir / "model" / "model.safetensors").keys() == names


def copy_here(config: Path, overrides: list[str], folder: Path) -> None:
    run = set_up(load_run_config(config, overrides))
    model = run.state.bare_model()
    assert is_sharded(model)
    before = torch.get_rng_state()
    whole = unsharded_copy(model, run.state.accelerator.device)
    assert torch.equal(torch.get_rng_state(), before)
    torch.save(whole.state_dict(), folder / f"whole-{run.state.accelerator.process_index}.pt")


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["model.tie_word_embeddings=false"]], ids=["tied", "untied"])
def test_unsharded_copy_has_all_weights_in_each_process(tiny_run, options):
    start_together(train_here, 1, tiny_run.config, options)  # this process would keep the folder for itself
    start_together(copy_here, 2, tiny_run.config, options, tiny_run.folder, **FSDP2)
    expected = weights(tiny_run.output_dir / "checkpoints" / "update-00000008")
    for rank in (0, 1):
        whole = torch.load(tiny_run.folder / f"whole-{rank}.pt", weights_only=True)
        assert whole.keys() == expected.keys()
        for name, weight in whole.items():
            assert torch.equal(weight, expected[name]), name
