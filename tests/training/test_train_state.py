# SPDX-License-Identifier: Apache-2.0
import json
import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from torch.distributed.fsdp import fully_shard
from torch.multiprocessing.spawn import start_processes

from tests.distributed.launching import free_port
from vanilla_transformer.training.schedule import paper_schedule
from vanilla_transformer.training.train_state import Progress, TrainState


def tied_model() -> torch.nn.Module:
    """Tied embeddings, and another parameter; sizes that do not divide by two."""
    model = torch.nn.ModuleDict({"embedding": torch.nn.Embedding(7, 3), "projection": torch.nn.Linear(3, 7)})
    model["projection"].weight = model["embedding"].weight
    return model


def new_state(model: torch.nn.Module | None = None) -> TrainState:
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(cpu=True)
    model = tied_model() if model is None else model
    optimizer = torch.optim.Adam(model.parameters(), lr=1.0, betas=(0.9, 0.98), fused=True)
    schedule = paper_schedule(optimizer, 16, 10)
    wrapped, optimizer = accelerator.prepare(model, optimizer)
    return TrainState(accelerator, wrapped, optimizer, schedule, Progress())


def update(state: TrainState) -> None:
    model = state.accelerator.unwrap_model(state.model)
    loss = model["projection"](model["embedding"](torch.arange(7))).logsumexp(-1).sum()
    state.accelerator.backward(loss)
    state.optimizer.step()
    state.optimizer.zero_grad()
    state.schedule.step()
    state.progress.updates += 1


def weights(state: TrainState) -> dict[str, torch.Tensor]:
    return {name: weight.clone() for name, weight in state.model.state_dict().items()}


@pytest.fixture
def trained() -> TrainState:
    state = new_state()
    for _ in range(3):
        update(state)
    return state


def test_resumed_state_is_equal_to_the_bit(trained: TrainState, tmp_path: Path):
    trained.save(tmp_path)
    other = new_state()
    other.model.load_state_dict(weights(trained))
    other.load(tmp_path)
    assert other.progress.updates == 3
    for state in (trained, other):
        update(state)
    for name, weight in weights(trained).items():
        assert torch.equal(weight, weights(other)[name])
    assert trained.schedule.state_dict() == other.schedule.state_dict()
    assert trained.optimizer.state_dict()["param_groups"] == other.optimizer.state_dict()["param_groups"]


def test_the_best_of_an_older_version_is_its_bleu(trained: TrainState, tmp_path: Path):
    trained.save(tmp_path)
    progress = json.loads((tmp_path / "progress.json").read_text(encoding="utf-8"))
    for name in ("best_score", "validated_updates", "validations_since_best"):
        del progress[name]
    (tmp_path / "progress.json").write_text(json.dumps(progress | {"best_bleu": 12.5}), encoding="utf-8")
    other = new_state()
    other.load(tmp_path)
    assert other.progress.best_score == 12.5


def test_the_optimizers_tensors_have_the_names_of_the_parameters(trained: TrainState, tmp_path: Path):
    trained.save(tmp_path)
    names = [name for name, _ in trained.model.named_parameters()]
    assert names == ["embedding.weight", "projection.bias"]
    tensors = load_file(tmp_path / "optimizer.safetensors")
    assert tensors.keys() == {f"{name}.{key}" for name in names for key in ("step", "exp_avg", "exp_avg_sq")}
    table = trained.model.get_parameter("embedding.weight")
    assert torch.equal(tensors["embedding.weight.exp_avg_sq"], trained.optimizer.state[table]["exp_avg_sq"])
    assert tensors["projection.bias.step"] == 3
    [group] = json.loads((tmp_path / "optimizer.json").read_text(encoding="utf-8"))
    assert group["params"] == names
    assert group["lr"] == trained.schedule.get_last_lr()[0]


def test_state_is_json_and_safetensors(trained: TrainState, tmp_path: Path):
    trained.save(tmp_path)
    names = {"optimizer.json", "schedule.json", "progress.json", "random_states_0.json"}
    assert {path.name for path in tmp_path.iterdir()} == {*names, "optimizer.safetensors"}
    for name in names:
        json.loads((tmp_path / name).read_text(encoding="utf-8"))


def test_optimizer_state_is_empty_before_the_first_update(tmp_path: Path):
    state = new_state()
    state.save(tmp_path)
    assert not state.optimizer.state
    other = new_state()
    other.load(tmp_path)
    assert not other.optimizer.state


def test_another_models_optimizer_is_refused(trained: TrainState, tmp_path: Path):
    trained.save(tmp_path)
    other = new_state(torch.nn.ModuleDict({"projection": torch.nn.Linear(3, 7)}))
    with pytest.raises(ValueError, match="has other parameters than the model"):
        other.load(tmp_path)


def draws() -> list[float]:
    """Of every generator, those of pairs too, of which one number is kept for the next time."""
    return [
        *(random.random(), random.gauss(), np.random.random(), np.random.standard_normal()),
        *torch.rand(3).tolist(),
        *torch.randn(3).tolist(),
    ]


def test_random_generators_are_restored(tmp_path: Path):
    state = new_state()
    draws()
    state.save(tmp_path)
    expected = draws() + draws()
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(5)
    state.load(tmp_path)
    assert draws() + draws() == expected


@pytest.mark.parametrize("kind", ["cuda", "mps"])
def test_the_accelerators_random_generator_is_restored(tmp_path: Path, monkeypatch, caplog, kind):
    generator, device = torch.Generator().manual_seed(7), torch.device(kind)  # stands in for that of the device
    module = torch.get_device_module(kind)
    monkeypatch.setattr(module, "get_rng_state", lambda asked: generator.get_state() if asked == device else None)
    monkeypatch.setattr(module, "set_rng_state", lambda state, _: generator.set_state(state))
    state = new_state()
    (tmp_path / "cpu").mkdir()
    state.save(tmp_path / "cpu")
    monkeypatch.setattr(Accelerator, "device", device)
    state.save(tmp_path)
    expected = torch.rand(3, generator=generator)
    state.load(tmp_path)
    assert torch.equal(torch.rand(3, generator=generator), expected)
    assert not caplog.text
    state.load(tmp_path / "cpu")
    assert f"was written without {kind}: random numbers on this device start anew" in caplog.text


def test_a_process_without_saved_random_states_keeps_its_seed(tmp_path: Path, caplog):
    new_state().save(tmp_path)
    (tmp_path / "random_states_0.json").rename(tmp_path / "random_states_1.json")
    torch.manual_seed(3)
    expected = torch.rand(3)
    state = new_state()
    torch.manual_seed(3)
    state.load(tmp_path)
    assert torch.equal(torch.rand(3), expected)
    assert "is of fewer processes: dropout of process 0 begins by a seed of its own" in caplog.text


def test_gradient_scaler_of_fp16_is_restored(tmp_path: Path):
    states = [new_state(), new_state()]
    scalers = [torch.amp.GradScaler("cpu", init_scale=scale) for scale in (128.0, 2.0)]
    for state, scaler in zip(states, scalers, strict=True):
        state.accelerator.scaler = scaler
    states[0].save(tmp_path)
    states[1].load(tmp_path)
    assert scalers[1].get_scale() == 128.0


def train_sharded(rank: int, port: int, folder: Path) -> None:
    """In each of two processes: save a sharded optimizer after 3 updates, and go on from it with another."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "ACCELERATE_USE_CPU": "true"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True)
    states = []
    for _ in range(2):
        torch.manual_seed(1)
        model = torch.nn.Sequential(torch.nn.Linear(3, 7), torch.nn.Linear(7, 5))
        fully_shard(model)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.1, fused=True)
        states.append(TrainState(accelerator, model, optimizer, paper_schedule(optimizer, 16, 10), Progress()))

    def step(state: TrainState) -> None:
        state.model(torch.ones(2, 3)).logsumexp(-1).sum().backward()
        state.optimizer.step()
        state.optimizer.zero_grad()

    for _ in range(3):
        step(states[0])
    states[0].save(folder)
    accelerator.wait_for_everyone()
    with torch.no_grad():
        for target, source in zip(states[1].model.parameters(), states[0].model.parameters(), strict=True):
            target.copy_(source)
    states[1].load(folder)
    for state in states:
        step(state)
    for resumed, expected in zip(states[1].model.parameters(), states[0].model.parameters(), strict=True):
        assert torch.equal(resumed.to_local(), expected.to_local())
    dist.destroy_process_group()


@pytest.mark.slow
def test_a_sharded_optimizer_resumes_to_the_bit_and_is_saved_unsharded(tmp_path: Path):
    start_processes(train_sharded, (free_port(), tmp_path), nprocs=2, start_method="spawn")
    tensors = load_file(tmp_path / "optimizer.safetensors")
    assert tensors["0.weight.exp_avg"].shape == (7, 3)
    assert {path.name for path in tmp_path.glob("random*")} == {"random_states_0.json", "random_states_1.json"}
