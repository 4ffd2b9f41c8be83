# SPDX-License-Identifier: Apache-2.0
"""Jobs run once, and gradient norms equal those of Jacobians computed otherwise."""

import json
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from torch import nn

from vanilla_transformer.comparison.compare import load_compare_config
from vanilla_transformer.comparison.long_range import (
    LongRangeConfig,
    LongRangeModel,
    LongRangeTask,
    accuracy,
    build_model,
    gradient_norms,
    list_jobs,
    measure_long_range,
    run_job,
    train_on_task,
)
from vanilla_transformer.comparison.tasks import TASKS

CPU = torch.device("cpu")
TINY = {"model_type": "vanilla_transformer", "d_model": 16, "d_ff": 32, "num_layers": 1, "num_heads": 2}
TINY |= {"dropout": 0.0, "label_smoothing": 0.0}


COUNTS = {"batch_size": 4, "warmup_updates": 2, "check_every": 10, "test_sequences": 8, "gradient_length": 3}


def model_with(**changes) -> LongRangeModel:
    return LongRangeModel(model=TINY | changes, learning_rate=0.01)


def settings(**changes) -> LongRangeConfig:
    values = {
        "models": {"Transformer": model_with()},
        "tasks": {"copy": LongRangeTask(trained_at=2, tested_at=[1, 3], updates=2)},
        "seeds": [1, 2],
    }
    return LongRangeConfig(**(values | COUNTS | changes))


def run_all(config: LongRangeConfig, folder: Path) -> list[Path]:
    """Run all jobs in this process; return their files."""
    for job in list_jobs(config, CPU):
        run_job(job, folder)
    return [folder / job.file_name for job in list_jobs(config, CPU)]


def never(finished: int, jobs: int, what: str) -> None:
    raise AssertionError(f"{what} ran again")


class LinearRecurrence(nn.Module):
    """h_t = A h_(t-1) + B x_t, whose Jacobian d steps back is A^d B, with the encoder's interface."""

    def __init__(self, width: int):
        super().__init__()
        self.embedding = nn.Embedding(50, width)
        self.a, self.b = 0.5 * torch.randn(width, width) / width**0.5, torch.randn(width, width)
        self.device = CPU

    def get_input_embeddings(self):
        return self.embedding

    def get_encoder(self):
        return self.encode

    def encode(self, inputs_embeds):
        states = [torch.zeros_like(inputs_embeds[:, 0])]
        for inputs in inputs_embeds.unbind(dim=1):
            states.append(states[-1] @ self.a.T + inputs @ self.b.T)
        return SimpleNamespace(last_hidden_state=torch.stack(states[1:], dim=1))


def test_gradient_norms_of_a_linear_recurrence_are_those_of_powers_of_its_matrix():
    model = LinearRecurrence(12)
    norms = gradient_norms(model, 5, torch.Generator().manual_seed(1))  # pyright: ignore[reportArgumentType] -- a stand-in
    expected = [(torch.linalg.matrix_power(model.a, d) @ model.b).norm().item() for d in range(5)]
    assert norms == pytest.approx(expected, rel=0.15)  # 256 probes: a standard error of a few percent


def test_gradient_norms_of_a_model_are_those_of_its_jacobian():
    model = build_model(list_jobs(settings(), CPU)[0]).eval()

    def last_output(embedded: torch.Tensor) -> torch.Tensor:
        return model.get_encoder()(inputs_embeds=embedded[None]).last_hidden_state[0, -1]

    expected = torch.zeros(2)
    for sequence in product(range(3, 11), repeat=2):  # all that can be drawn
        embedded = model.get_input_embeddings()(torch.tensor(sequence)).detach()  # (length, width)
        jacobian = torch.autograd.functional.jacobian(last_output, embedded)  # (width, length, width)
        expected += jacobian.square().sum(dim=(0, 2)) / 64
    norms = torch.tensor([gradient_norms(model, 2, torch.Generator().manual_seed(seed)) for seed in range(10)])
    assert norms.square().mean(dim=0).tolist() == pytest.approx(expected.flip(0).tolist(), rel=0.1)


def test_accuracy_is_the_share_of_correct_symbols():
    labels = torch.tensor([[3, 4], [5, 6]])
    guesses = torch.tensor([[3, 4], [5, 7]])

    class Guesser(nn.Module):
        device = CPU

        def forward(self, input_ids, labels):
            return SimpleNamespace(logits=nn.functional.one_hot(guesses, 10).float())

    assert accuracy(Guesser(), labels, labels) == 0.75  # pyright: ignore[reportArgumentType] -- a stand-in


def test_training_learns_and_stops_when_solved():
    task = LongRangeTask(trained_at=1, tested_at=[1], updates=1000)
    (job,) = list_jobs(settings(tasks={"copy": task}, seeds=[1], batch_size=32, check_every=20), CPU)
    result = train_on_task(job)["run"]
    assert result["accuracy"] == {"1": 1.0}
    assert result["updates"] < 1000


def test_all_models_train_on_the_same_sequences_of_a_seed_at_one_length(monkeypatch: pytest.MonkeyPatch):
    from vanilla_transformer.comparison import long_range

    seen = []

    def copy(batch: int, length: int, generator: torch.Generator):
        ids, labels = TASKS["copy"](batch, length, generator)
        seen.append(ids.tolist())
        return ids, labels

    monkeypatch.setattr(long_range, "TASKS", TASKS | {"copy": copy})
    config = settings(models={"Transformer": model_with(), "wider": model_with(d_model=32)}, seeds=[1])
    for job in list_jobs(config, CPU):
        train_on_task(job)
    trained = [batch for batch in seen if len(batch) == COUNTS["batch_size"]]  # the others measure gradients
    assert len(trained) == 4
    assert trained[:2] == trained[2:]
    assert {len(sequence) for batch in trained for sequence in batch} == {2}


def test_finished_jobs_are_merged_and_not_run_again(tmp_path: Path):
    config = settings()
    run_all(config, tmp_path)
    results = measure_long_range(config, tmp_path, CPU, never)
    assert results["device"] == "cpu"
    parameters = sum(p.numel() for p in build_model(list_jobs(config, CPU)[0]).parameters())
    assert results["parameters"] == {"Transformer": parameters}
    assert [(row["model"], row["seed"], row["when"], len(row["norms"])) for row in results["gradients"]] == [
        ("Transformer", seed, when, 3) for seed in (1, 2) for when in ("initialisation", "after training")
    ]
    assert [(row["task"], row["seed"], row["updates"], list(row["accuracy"])) for row in results["tasks"]] == [
        ("copy", seed, 2, ["1", "3"]) for seed in (1, 2)
    ]
    json.dumps(results, allow_nan=False)


def test_file_names_escape_slashes_of_model_names():
    config = settings(models={"Transformer": model_with(), "a/b": model_with()})
    assert {"/" in job.file_name for job in list_jobs(config, CPU)} == {False}


def test_unequal_models_are_refused(tmp_path: Path):
    config = settings(models={"Transformer": model_with(), "wide": model_with(d_ff=400)})
    with pytest.raises(ValueError, match="long_range.models: wide has .* more than 5% apart"):
        measure_long_range(config, tmp_path, CPU, never)


def test_only_missing_jobs_run(tmp_path: Path):
    config = settings()
    kept, lost = run_all(config, tmp_path)
    before, wanted = kept.stat().st_mtime_ns, json.loads(lost.read_text(encoding="utf-8"))
    lost.unlink()
    progress = []
    measure_long_range(config, tmp_path, CPU, lambda *report: progress.append(report))
    assert progress == [(2, 2, "copy, Transformer, seed 2")]
    assert kept.stat().st_mtime_ns == before
    again = json.loads(lost.read_text(encoding="utf-8"))  # in another process: the seed decides, and nothing else
    assert again["result"]["gradients"][0]["norms"] == pytest.approx(
        wanted["result"]["gradients"][0]["norms"], rel=1e-4
    )
    accuracies = [content["result"]["run"]["accuracy"] for content in (again, wanted)]
    assert accuracies[0] == pytest.approx(accuracies[1], abs=0.13)  # one symbol in 8
    assert sorted(tmp_path.iterdir()) == sorted([kept, lost])


@pytest.mark.parametrize("content", ["", '{"settings": ', "[]", '{"settings": {}}'])
def test_a_damaged_file_is_named(tmp_path: Path, content: str):
    config = settings(seeds=[1])
    (path,) = run_all(config, tmp_path)
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match="seed 1.json is damaged: remove it"):
        measure_long_range(config, tmp_path, CPU, never)


def test_results_of_other_settings_are_refused(tmp_path: Path):
    run_all(settings(seeds=[1]), tmp_path)
    with pytest.raises(ValueError, match="was made with other settings"):
        measure_long_range(settings(seeds=[1], batch_size=5), tmp_path, CPU, never)


def test_gradients_are_measured_for_copy_only(tmp_path: Path):
    config = settings(tasks={"parity": LongRangeTask(trained_at=2, tested_at=[1], updates=1)}, seeds=[1])
    run_all(config, tmp_path)
    assert measure_long_range(config, tmp_path, CPU, never)["gradients"] == []


def a_task(**changes):
    return {"tasks": {"copy": {"trained_at": 2, "tested_at": [1], "updates": 2} | changes}}


def a_model(learning_rate: object = 0.01, **changes):
    return {"models": {"Transformer": {"model": TINY | changes, "learning_rate": learning_rate}}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (a_task(trained_at=0), "tasks.copy.trained_at=0 must be at least 1"),
        (a_task(updates=True), "tasks.copy.updates=True: expected int, got bool"),
        (a_task(tested_at=[]), r"tasks.copy.tested_at=\[\] must be a list of numbers, each at least 1"),
        (a_task(tested_at=[3, "x"]), r"tasks.copy.tested_at=\[3, 'x'\]: expected list"),
        (a_task(lenght=3), "unknown key long_range.tasks.copy.lenght; known keys are trained_at, tested_at, updates"),
        ({"tasks": {"sort": a_task()["tasks"]["copy"]}}, "tasks.sort is not a task; use copy, recall, parity"),
        ({"tasks": {}}, "tasks is empty"),
        ({"seeds": [1, 1]}, r"seeds=\[1, 1\] must be different"),
        ({"seeds": ["x"]}, r"seeds=\['x'\]: expected list"),
        ({"batch_size": 0}, "batch_size=0 must be at least 1"),
        (a_model(learning_rate=-1), "models.Transformer.learning_rate=-1.0 must be greater than 0"),
        (a_model(d_modle=3), "models.Transformer: unknown key model.d_modle; known keys are"),
        (a_model(vocab_size=3), "models.Transformer: unknown key model.vocab_size"),
        (a_model(num_heads=3), "models.Transformer: model.num_heads=3 does not divide"),
        (a_model(num_heads="x"), "models.Transformer: model.num_heads"),
        (a_model(model_type="perceptron"), "models.Transformer: .*perceptron"),
        ({"models": {"Transformer": {"model": [], "learning_rate": 0.1}}}, r"models.Transformer.model=\[\]: expected"),
    ],
)
def test_impossible_settings_are_refused(tmp_path: Path, changes: dict, message: str):
    section = a_model() | a_task() | {"seeds": [1]} | COUNTS | changes
    (tmp_path / "compare.yaml").write_text(yaml.safe_dump({"output_dir": "out", "long_range": section}), "utf-8")
    with pytest.raises(ValueError, match=f"long_range.*{message}" if not message.startswith("unknown") else message):
        load_compare_config(tmp_path / "compare.yaml")
