# SPDX-License-Identifier: Apache-2.0
"""Long-range dependencies: accuracy on synthetic tasks by distance, and the norm of gradients by distance."""

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

from vanilla_transformer.comparison.fairness import check_models, check_parameters, count_parameters
from vanilla_transformer.comparison.result_file import read_result, write_result
from vanilla_transformer.comparison.tasks import CHANCE, TASKS, VOCAB_SIZE, batch_at_distance
from vanilla_transformer.training.bounds import at_least, positive
from vanilla_transformer.training.configuration import model_config_of

BETAS, EPS = (0.9, 0.98), 1e-9  # section 5.3 of the paper
MAX_GRAD_NORM = 1.0  # without it, recurrent networks diverge at the rates that they learn fastest at
EVALUATIONS_TO_BE_SOLVED = 3  # without an error, in a row
EVALUATION_SEQUENCES = 256
GRADIENT_TASK = "copy"  # its jobs measure gradients as well
GRADIENT_SEQUENCES = 256
# All models and seeds are tested on the same sequences, whose seeds are not those of training.
TEST_SEED, EVALUATION_SEED, GRADIENT_SEED = 2**40, 2**41, 2**42


@strict
@dataclass(kw_only=True)
class LongRangeModel:
    """One model in the section `long_range.models`: its `model_type` and fields, and its peak learning rate."""

    model: dict[str, Any]
    learning_rate: float = positive()


@strict
@dataclass(kw_only=True)
class LongRangeTask:
    """One task in the section `long_range.tasks`: trained at one length, tested at shorter and longer ones.

    A length is a number of symbols, pairs or bits. Training ends before `updates` if the task is solved.
    """

    trained_at: int = at_least(1)
    tested_at: list[int] = at_least(1)  # noqa: RUF009 -- declares a field
    updates: int = at_least(1)


@strict
@dataclass(kw_only=True)
class LongRangeConfig:
    """The section `long_range`: every task is trained with every model and seed.

    Args:
        models: by name.
        tasks: by their name in tasks.py.
        seeds: of initialisation and of the training sequences, which all models share.
        batch_size: sequences in an update.
        warmup_updates: over which the learning rate rises; see `train_on_task`.
        check_every: updates between two evaluations at `trained_at`, which decide whether the task is solved.
        test_sequences: random sequences in each test.
        gradient_length: symbols of the sequences through which gradients are propagated.

    Raises:
        ValueError: an unknown task; no model named "Transformer", or one that cannot be built; a seed given twice.
    """

    models: dict[str, LongRangeModel]
    tasks: dict[str, LongRangeTask]
    seeds: list[int] = at_least(0)  # noqa: RUF009 -- declares a field
    batch_size: int = at_least(1)
    warmup_updates: int = at_least(1)
    check_every: int = at_least(1)
    test_sequences: int = at_least(1)
    gradient_length: int = at_least(1)

    def __post_init__(self):
        if max(self.seeds) >= TEST_SEED or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"long_range.seeds={self.seeds} must be different numbers from 0 to 2^40 - 1")
        if not self.tasks:
            raise ValueError("long_range.tasks is empty: name at least one")
        for name in self.tasks:
            if name not in TASKS:
                raise ValueError(f"long_range.tasks.{name} is not a task; use {', '.join(TASKS)}")
        check_models("long_range.models", {name: model.model for name, model in self.models.items()})


@dataclass(frozen=True)
class Job:
    """The training of one model on one task with one seed; task and model are names in `config`."""

    task: str
    model: str
    seed: int
    device: str  # torch's name
    config: LongRangeConfig

    @property
    def file_name(self) -> str:
        return f"{self.task}, {quote(self.model, safe=' +')}, seed {self.seed}.json"

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that the job's result depends on, for its file."""
        settings = asdict(self.config)
        tasks, models, _ = (settings.pop(name) for name in ("tasks", "models", "seeds"))
        settings |= {"task_section": tasks[self.task], "model_section": models[self.model]}
        if self.task != GRADIENT_TASK:
            settings["gradient_length"] = None
        return settings | {"task": self.task, "model": self.model, "seed": self.seed, "device": self.device}


def list_jobs(config: LongRangeConfig, device: torch.device) -> list[Job]:
    """All tasks × models × seeds."""
    combinations = product(config.tasks, config.models, config.seeds)
    return [Job(task, model, seed, device.type, config) for task, model, seed in combinations]


def build_model(job: Job) -> PreTrainedModel:
    """The job's model, as its seed initialises it."""
    torch.manual_seed(job.seed)
    config = model_config_of(job.config.models[job.model].model, vocab_size=VOCAB_SIZE)
    return AutoModelForSeq2SeqLM.from_config(config).to(job.device)


def train_on_task(job: Job) -> dict[str, Any]:
    """Train one model on one task, and test it at every distance; in the copy task, measure gradients, too.

    The learning rate is the lower of two lines: one rises over `warmup_updates`, the other falls from the first of
    `updates` to 0 after the last. Training ends earlier after `EVALUATIONS_TO_BE_SOLVED` evaluations in a row without
    an error at `trained_at`.

    Returns:
        The job's parts of the results: `run`, whose `seconds` are those of training and its evaluations, and
        `gradients`, at initialisation and after training.
    """
    config, task = job.config, job.config.tasks[job.task]
    model, gradients = build_model(job), []
    learning_rate = config.models[job.model].learning_rate
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate, betas=BETAS, eps=EPS)
    schedule = LambdaLR(
        optimizer, lambda done: min((done + 1) / config.warmup_updates, (task.updates - done) / task.updates)
    )
    generator = torch.Generator().manual_seed(job.seed)
    evaluation_generator = torch.Generator().manual_seed(EVALUATION_SEED)

    def accuracy_at(distance: int, sequences: int, generator: torch.Generator) -> float:
        return accuracy(model, *batch_at_distance(job.task, sequences, distance, generator))

    def measure_gradients(when: str) -> None:
        if job.task == GRADIENT_TASK:
            norms = gradient_norms(model, config.gradient_length, torch.Generator().manual_seed(GRADIENT_SEED))
            gradients.append({"model": job.model, "seed": job.seed, "when": when, "norms": norms})

    measure_gradients("initialisation")
    done = solved = 0
    start = time.perf_counter()
    while done < task.updates and solved < EVALUATIONS_TO_BE_SOLVED:
        model.train()
        input_ids, labels = TASKS[job.task](config.batch_size, task.trained_at, generator)
        model(input_ids=input_ids.to(job.device), labels=labels.to(job.device), skip_logits=True).loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        done += 1
        if done % config.check_every == 0:
            is_right = accuracy_at(task.trained_at, EVALUATION_SEQUENCES, evaluation_generator) == 1
            solved = solved + 1 if is_right else 0
    seconds = time.perf_counter() - start
    tested = {}
    for distance in task.tested_at:
        test_generator = torch.Generator().manual_seed(TEST_SEED + distance)
        tested[str(distance)] = accuracy_at(distance, config.test_sequences, test_generator)
    measure_gradients("after training")
    run = {
        "task": job.task,
        "model": job.model,
        "seed": job.seed,
        "trained_at": task.trained_at,
        "updates": done,
        "seconds": seconds,
        "accuracy": tested,
    }
    return {"run": run, "gradients": gradients}


@torch.no_grad()
def accuracy(model: PreTrainedModel, input_ids: torch.Tensor, labels: torch.Tensor) -> float:
    """The share of target symbols that the model predicts with teacher forcing. Leaves it in evaluation mode.

    Args:
        input_ids: `(batch, source_length)`.
        labels: `(batch, target_length)`; all count.
    """
    model.eval()
    labels = labels.to(model.device)
    logits = model(input_ids=input_ids.to(model.device), labels=labels).logits  # (batch, target_length, vocab_size)
    return (logits.argmax(dim=-1) == labels).float().mean().item()


def gradient_norms(model: PreTrainedModel, length: int, generator: torch.Generator) -> list[float]:
    """How much the encoder's last output depends on the input d steps before it, for d = 0 … length - 1.

    Estimates the Frobenius norm of the Jacobian d output / d embedded input, as the root of its mean square over random
    sequences: for a random normal vector v, the mean of |d (v · output) / d input|² is the squared norm. Leaves the
    model in evaluation mode.

    Args:
        model: any sequence-to-sequence model whose encoder takes `inputs_embeds`.
        length: symbols of the random sequences.
        generator: on the CPU.
    """
    model.eval()
    ids, _ = TASKS[GRADIENT_TASK](GRADIENT_SEQUENCES, length, generator)
    embedded = model.get_input_embeddings()(ids.to(model.device)).detach().requires_grad_()  # (batch, length, width)
    # cuDNN has no backward pass of recurrent networks in evaluation mode.
    with torch.backends.cudnn.flags(enabled=False):
        output = model.get_encoder()(inputs_embeds=embedded).last_hidden_state[:, -1]  # (batch, width)
        probes = torch.randn(output.shape, generator=generator).to(output)
        (gradient,) = torch.autograd.grad((probes * output).sum(), embedded)  # (batch, length, width)
    mean_squares = gradient.square().sum(dim=2).mean(dim=0)  # (length)
    return mean_squares.sqrt().flip(0).tolist()


def measure_long_range(
    config: LongRangeConfig, folder: Path, device: torch.device, on_progress: Callable[[int, int, str], None]
) -> dict[str, Any]:
    """Run all tasks × models × seeds: on a CPU as many at once as torch would use threads, on an accelerator in turn.

    Each job writes a file into `folder`, and is not run again. Interrupted on a CPU, the running jobs finish first.

    Args:
        folder: the place of the jobs' files; made if it does not exist.
        on_progress: called with the finished jobs, all jobs, and a description of the last.

    Returns:
        The part `long_range` of the results; `vanilla_transformer.comparison.report` documents it.

    Raises:
        ValueError: a file in `folder` is damaged, or was made with other settings; models whose parameters differ by
            more than 5%.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parameters = {name: count_parameters(model.model, vocab_size=VOCAB_SIZE) for name, model in config.models.items()}
    check_parameters("long_range.models", parameters)
    jobs = list_jobs(config, device)
    missing = [job for job in jobs if read_result(folder / job.file_name, job.settings) is None]
    finished = len(jobs) - len(missing)
    for job in _run_in_processes(missing, folder) if device.type == "cpu" else _run_in_turn(missing, folder):
        finished += 1
        on_progress(finished, len(jobs), f"{job.task}, {job.model}, seed {job.seed}")
    contents = [read_result(folder / job.file_name, job.settings) for job in jobs]
    return {
        "device": device.type,
        "parameters": parameters,
        "chance": {task: CHANCE[task] for task in config.tasks},
        "gradients": [gradients for content in contents for gradients in content["gradients"]],
        "tasks": [content["run"] for content in contents],
        "test_sequences": config.test_sequences,
    }


def run_job(job: Job, folder: Path) -> None:
    """Train, test and measure; write the job's file."""
    write_result(folder / job.file_name, job.settings, train_on_task(job))


def _run_in_turn(jobs: list[Job], folder: Path) -> Iterator[Job]:
    for job in jobs:
        run_job(job, folder)
        yield job


def _run_in_processes(jobs: list[Job], folder: Path) -> Iterator[Job]:
    """The jobs as they finish, each in a process with one thread.

    No more are submitted than can run, so that an interruption starts no other.
    """
    if not jobs:
        return
    workers = min(torch.get_num_threads(), len(jobs))  # the cores that this process may use
    waiting, running = list(reversed(jobs)), {}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=_init_worker) as pool:
        while waiting or running:
            while waiting and len(running) < workers:
                job = waiting.pop()
                running[pool.submit(run_job, job, folder)] = job
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                future.result()
                yield running.pop(future)


def _init_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent handles it
    torch.set_num_threads(1)
