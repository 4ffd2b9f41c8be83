# SPDX-License-Identifier: Apache-2.0
"""How far back a model can learn to look, and how much of a gradient arrives there."""

import multiprocessing
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any
from urllib.parse import quote

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import AutoModelForSeq2SeqLM, PreTrainedModel

from vanilla_transformer.comparison.fairness import check_has_transformer, check_parameters, parameters_of
from vanilla_transformer.comparison.result_file import read_result, write_result
from vanilla_transformer.comparison.tasks import (
    ALPHABET,
    CHANCE,
    FIRST_SYMBOL,
    TASKS,
    VOCAB_SIZE,
    batch_at_distance,
    training_batch,
)
from vanilla_transformer.training.configuration import check_model_section, model_config_of

BETAS, EPS = (0.9, 0.98), 1e-9  # section 5.3 of the paper
MAX_GRAD_NORM = 1.0  # without it, recurrent networks do not survive the rates that they learn fastest at
LOOKS_TO_BE_SOLVED = 3  # without an error, one after the other
GRADIENTS_OF = "copy"  # the task whose jobs measure gradients as well
GRADIENT_SEQUENCES = 256
# Seeds of what is not training, so that all models and seeds meet the same sequences. Short ones
# come in training too: there are only so many.
TEST_SEED, LOOK_SEED, GRADIENT_SEED = 2**40, 2**41, 2**42


@strict
@dataclass(kw_only=True)
class LongRangeConfig:
    """The section `long_range`: every task is trained with every model and seed.

    Args:
        models: name → `model` (its `model_type` and the fields of its configuration) and `learning_rate`.
        tasks: name of a task of tasks.py → `trained_at` (lengths of training: 1 to this), `tested_at` (a list of
            distances) and `updates` (at most: training ends before if the task is solved).
        seeds: of initialisation and of the training sequences, which all models share.
        batch_size: sequences in an update.
        warmup_updates: over which the learning rate rises; see `train_on_task`.
        check_every: updates between two looks at whether the task is solved at `trained_at`.
        test_sequences: random sequences that accuracy is measured on, for each distance and for each look.
        gradient_length: symbols of the sequences through which gradients are followed back.

    Raises:
        ValueError: an unknown task, key or model type; a number out of range.
    """

    models: dict[str, Any]
    tasks: dict[str, Any]
    seeds: list[int]
    batch_size: int
    warmup_updates: int
    check_every: int
    test_sequences: int
    gradient_length: int

    def __post_init__(self):
        for name in ("models", "tasks", "seeds"):
            if not getattr(self, name):
                raise ValueError(f"long_range.{name} is empty: name at least one")
        for name in ("batch_size", "warmup_updates", "check_every", "test_sequences", "gradient_length"):
            _check_at_least_one(f"long_range.{name}", getattr(self, name))
        for seed in self.seeds:
            if not 0 <= seed < TEST_SEED or self.seeds.count(seed) > 1:
                raise ValueError(f"long_range.seeds={self.seeds} must be different numbers from 0 to 2^40 - 1")
        for name, task in self.tasks.items():
            _check_task(name, task)
        for name, model in self.models.items():
            _check_model(name, model)
        check_has_transformer("long_range.models", self.models)


def _check_keys(where: str, section: Any, required: tuple[str, ...]) -> None:
    if not isinstance(section, dict) or set(section) != set(required):
        raise ValueError(f"{where}={section!r} must be a section with the keys {', '.join(required)}, and no others")


def _check_at_least_one(where: str, value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{where}={value!r} must be at least 1, and whole")


def _check_task(name: str, task: Any) -> None:
    where = f"long_range.tasks.{name}"
    if name not in TASKS:
        raise ValueError(f"{where} is not a task; use {', '.join(TASKS)}")
    _check_keys(where, task, ("trained_at", "tested_at", "updates"))
    _check_at_least_one(f"{where}.trained_at", task["trained_at"])
    _check_at_least_one(f"{where}.updates", task["updates"])
    if not isinstance(task["tested_at"], list) or not task["tested_at"]:
        raise ValueError(f"{where}.tested_at={task['tested_at']!r} must be a list of distances")
    for distance in task["tested_at"]:
        _check_at_least_one(f"{where}.tested_at", distance)


def _check_model(name: str, model: Any) -> None:
    where = f"long_range.models.{name}"
    _check_keys(where, model, ("model", "learning_rate"))
    rate = model["learning_rate"]
    if not isinstance(rate, (int, float)) or not 0 < rate < 1:
        raise ValueError(f"{where}.learning_rate={rate!r} must be a number greater than 0 and less than 1")
    if not isinstance(model["model"], dict):
        raise ValueError(f"{where}.model={model['model']!r} must be a section of a model's fields")
    try:
        check_model_section(model["model"])
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


@dataclass(frozen=True, kw_only=True)
class Job:
    """One task, model and seed, with all that its result depends on; made of what JSON can hold.

    Args:
        task, model: names.
        task_section, model_section: of `LongRangeConfig`.
        seed: of initialisation and of the training sequences.
        device: "cpu", or torch's name of an accelerator.
        batch_size, warmup_updates, check_every, test_sequences: of `LongRangeConfig`.
        gradient_length: of `LongRangeConfig`; `None`: this job does not measure gradients.
    """

    task: str
    model: str
    task_section: dict[str, Any]
    model_section: dict[str, Any]
    seed: int
    device: str
    batch_size: int
    warmup_updates: int
    check_every: int
    test_sequences: int
    gradient_length: int | None

    @property
    def file_name(self) -> str:
        return f"{self.task}, {quote(self.model, safe=' +')}, seed {self.seed}.json"


def jobs_of(settings: LongRangeConfig, device: torch.device) -> list[Job]:
    """All tasks × models × seeds."""
    return [
        Job(
            task=task,
            model=model,
            task_section=settings.tasks[task],
            model_section=settings.models[model],
            seed=seed,
            device=device.type,
            batch_size=settings.batch_size,
            warmup_updates=settings.warmup_updates,
            check_every=settings.check_every,
            test_sequences=settings.test_sequences,
            gradient_length=settings.gradient_length if task == GRADIENTS_OF else None,
        )
        for task, model, seed in product(settings.tasks, settings.models, settings.seeds)
    ]


def build_model(model_section: dict[str, Any], seed: int, device: torch.device) -> PreTrainedModel:
    """A model of `LongRangeConfig.models` as `seed` initialises it."""
    torch.manual_seed(seed)
    config = model_config_of(model_section["model"], vocab_size=VOCAB_SIZE)
    return AutoModelForSeq2SeqLM.from_config(config).to(device)


def train_on_task(job: Job) -> tuple[dict[str, Any], PreTrainedModel]:
    """Train one model on one task, and test it at every distance on random sequences of other seeds.

    The learning rate is the lower of two straight lines: one rises over `warmup_updates`, the other falls from the
    first of `updates` to 0 after the last.
    Training ends before that when `LOOKS_TO_BE_SOLVED` looks in a row find no error at `trained_at`.

    Returns:
        The job's part of the results (`seconds`: of training, the looks included; `accuracy`: share of the target
        symbols that are the likeliest given those before them), and the trained model, in evaluation mode.
    """
    task, updates, trained_at = job.task, job.task_section["updates"], job.task_section["trained_at"]
    device = torch.device(job.device)
    model = build_model(job.model_section, job.seed, device)
    optimizer = torch.optim.Adam(model.parameters(), lr=job.model_section["learning_rate"], betas=BETAS, eps=EPS)

    def share_of_the_rate(done: int) -> float:
        return min((done + 1) / job.warmup_updates, (updates - done) / updates)

    schedule = LambdaLR(optimizer, share_of_the_rate)
    generator = torch.Generator().manual_seed(job.seed)
    look_generator = torch.Generator().manual_seed(LOOK_SEED)
    done = solved = 0
    start = time.perf_counter()
    while done < updates and solved < LOOKS_TO_BE_SOLVED:
        model.train()
        input_ids, labels = training_batch(task, job.batch_size, trained_at, generator)
        model(input_ids=input_ids.to(device), labels=labels.to(device), skip_logits=True).loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        done += 1
        if done % job.check_every == 0:
            batch = batch_at_distance(task, job.test_sequences, trained_at, trained_at, look_generator)
            solved = solved + 1 if accuracy(model, *batch) == 1 else 0
    seconds = time.perf_counter() - start

    by_distance = {}
    for distance in job.task_section["tested_at"]:
        generator = torch.Generator().manual_seed(TEST_SEED + distance)
        batch = batch_at_distance(task, job.test_sequences, distance, trained_at, generator)
        by_distance[str(distance)] = accuracy(model, *batch)
    result = {
        "task": task,
        "model": job.model,
        "seed": job.seed,
        "trained_at": trained_at,
        "updates": done,
        "seconds": seconds,
        "parameters": model.num_parameters(),
        "accuracy": by_distance,
    }
    return result, model


@torch.no_grad()
def accuracy(model: PreTrainedModel, input_ids: torch.Tensor, labels: torch.Tensor) -> float:
    """Share of target symbols that are the likeliest given the right ones before them.

    Leaves the model in evaluation mode.

    Args:
        input_ids: `(batch, source_length)`.
        labels: `(batch, target_length)`; all count.
    """
    model.eval()
    labels = labels.to(model.device)
    logits = model(input_ids=input_ids.to(model.device), labels=labels).logits  # (batch, target_length, vocab_size)
    return (logits.argmax(dim=-1) == labels).float().mean().item()


def gradient_norms(model: PreTrainedModel, length: int, generator: torch.Generator) -> list[float]:
    """How much the encoder's last output hangs on the input d steps before it, for d = 0 … length - 1.

    An estimate of the Frobenius norm of the Jacobian d output / d embedded input, as the root of its mean square over
    random sequences: of a random normal vector v, the square of |d (v · output) / d input| has that mean. Leaves the
    model in evaluation mode.

    Args:
        model: any sequence-to-sequence model whose encoder takes `inputs_embeds`.
        length: symbols of the random sequences.
        generator: on the CPU.
    """
    model.eval()
    ids = torch.randint(FIRST_SYMBOL, FIRST_SYMBOL + ALPHABET, (GRADIENT_SEQUENCES, length), generator=generator)
    embedded = model.get_input_embeddings()(ids.to(model.device)).detach().requires_grad_()  # (batch, length, width)
    # cuDNN has no backward pass of recurrent networks in evaluation mode
    with torch.backends.cudnn.flags(enabled=False):
        output = model.get_encoder()(inputs_embeds=embedded).last_hidden_state[:, -1]  # (batch, width)
        probes = torch.randn(output.shape, generator=generator).to(output)
        (gradient,) = torch.autograd.grad((probes * output).sum(), embedded)  # (batch, length, width)
    mean_squares = gradient.square().sum(dim=2).mean(dim=0)  # (length)
    return mean_squares.sqrt().flip(0).tolist()


def run_job(job: Job, folder: Path) -> None:
    """Train, test, measure gradients where asked, and write the file of the job: whole or not at all."""
    gradients = []
    if job.gradient_length is not None:
        untrained = build_model(job.model_section, job.seed, torch.device(job.device))
        gradients.append(_gradients(job, "initialisation", untrained))
    result, model = train_on_task(job)
    if job.gradient_length is not None:
        gradients.append(_gradients(job, "after training", model))
    write_result(folder / job.file_name, asdict(job), {"run": result, "gradients": gradients})


def _gradients(job: Job, when: str, model: PreTrainedModel) -> dict[str, Any]:
    assert job.gradient_length is not None
    norms = gradient_norms(model, job.gradient_length, torch.Generator().manual_seed(GRADIENT_SEED))
    return {"model": job.model, "seed": job.seed, "when": when, "norms": norms}


def finished_job(job: Job, folder: Path) -> dict[str, Any] | None:
    """What `run_job` wrote: `run` and `gradients`; `None`: nothing yet.

    Raises:
        ValueError: the file is damaged, or was made with other settings.
    """
    return read_result(folder / job.file_name, asdict(job))


def measure_long_range(
    settings: LongRangeConfig, folder: Path, device: torch.device, on_progress: Callable[[int, int, str], None]
) -> dict[str, Any]:
    """All tasks × models × seeds: on a CPU as many at a time as torch would use threads, on an accelerator one by one.

    Each job leaves a file in `folder`; jobs that have theirs are not done again. When this is interrupted, the jobs
    under way are finished first on a CPU.

    Args:
        settings: the section `long_range`.
        folder: of the jobs' files; made if it does not exist.
        device: a CPU or an accelerator.
        on_progress: called with the jobs that have a file, the number of all jobs, and what was finished last.

    Returns:
        `device`; `test_sequences`; `parameters` by model; `chance` by task; `gradients`, a list of `model`, `seed`,
        `when` ("initialisation" or "after training") and `norms` (for each distance from 0); `tasks`, a list of `task`,
        `model`, `seed`, `trained_at`, `updates`, `seconds` and `accuracy` (by distance, as a string).

    Raises:
        ValueError: a file in `folder` is damaged, or was made with other settings; models whose numbers of parameters
            differ by more than 5%.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sizes = {name: parameters_of(one["model"], VOCAB_SIZE) for name, one in settings.models.items()}
    check_parameters("long_range.models", sizes)
    jobs = jobs_of(settings, device)
    missing = [job for job in jobs if finished_job(job, folder) is None]
    finished = len(jobs) - len(missing)
    for job in _run_in_processes(missing, folder) if device.type == "cpu" else _run_here(missing, folder):
        finished += 1
        on_progress(finished, len(jobs), f"{job.task}, {job.model}, seed {job.seed}")
    contents = [content for job in jobs if (content := finished_job(job, folder)) is not None]
    assert len(contents) == len(jobs)
    return _merged(contents, device) | {"test_sequences": settings.test_sequences}


def _run_here(jobs: list[Job], folder: Path) -> Iterator[Job]:
    for job in jobs:
        run_job(job, folder)
        yield job


def _run_in_processes(jobs: list[Job], folder: Path) -> Iterator[Job]:
    """The jobs as they are finished, each in a process with one thread.

    No more than run at once are handed over, so that after an interruption none is begun.
    """
    if not jobs:
        return
    workers = min(torch.get_num_threads(), len(jobs))  # the cores that this process may use, as torch sees them
    waiting, running = list(reversed(jobs)), {}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=_prepare_worker) as pool:
        while waiting or running:
            while waiting and len(running) < workers:
                job = waiting.pop()
                running[pool.submit(run_job, job, folder)] = job
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                future.result()
                yield running.pop(future)


def _prepare_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the first one decides
    torch.set_num_threads(1)


def _merged(contents: list[dict[str, Any]], device: torch.device) -> dict[str, Any]:
    """The results of all jobs; a model has the same parameters in all of them."""
    results = [content["run"] for content in contents]
    return {
        "device": device.type,
        "parameters": {result["model"]: result["parameters"] for result in results},
        "chance": {result["task"]: CHANCE[result["task"]] for result in results},
        "gradients": [gradients for content in contents for gradients in content["gradients"]],
        "tasks": [{key: value for key, value in result.items() if key != "parameters"} for result in results],
    }
