# SPDX-License-Identifier: Apache-2.0
"""Section 4 of the paper, "Why Self-Attention": the speed of whole training steps by length of the sequences."""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from itertools import product
from statistics import median
from typing import Any, Literal

import torch
from accelerate.utils import set_seed
from huggingface_hub.dataclasses import strict
from transformers import AutoModelForSeq2SeqLM, PreTrainedModel

from vanilla_transformer.comparison.fairness import (
    check_models,
    check_parameters,
    check_precision,
    choose_precision,
)
from vanilla_transformer.comparison.kernels import LENGTHS, describe_kernels, random_batch
from vanilla_transformer.comparison.threads import check_threads, cpu_threads
from vanilla_transformer.configuration_base import ATTENTION_BACKENDS
from vanilla_transformer.configuration_vanilla_transformer import VanillaTransformerConfig
from vanilla_transformer.training.bounds import at_least
from vanilla_transformer.training.configuration import model_config_of

PRECISIONS = {"no": "float32", "bf16": "bfloat16", "fp16": "float16"}


@strict
@dataclass(kw_only=True)
class SpeedConfig:
    """The section `speed`.

    Args:
        models: name → section `model` as in a run's configuration; equal in parameters to 5%.
        vocab_size: of all models.
        lengths: tokens of a source, and of its target. All are measured in the setting of training: the last of
            `precisions` with the last of `threads`.
        compared_lengths: the lengths at which every precision is measured with every number of threads.
        one_sequence: lengths at which a batch is one sequence alone, measured in every setting, too.
        batch_tokens: target tokens in a batch, and as many source tokens; a batch has at least one sentence.
        precisions: "bf16" computes under autocast; "auto" is the one that training would choose on this device.
        threads: numbers of CPU threads; another device has none to set.
        attention: backends of the Transformer's attention; it takes the fastest of them in every case.
        repeats: measurements of each model in each setting at each length, all interleaved.
        updates: in a measurement.

    Raises:
        ValueError: no model named "Transformer"; a model section that cannot be used; a compared length that is not
            among the lengths; an unknown backend.
    """

    models: dict[str, Any]
    vocab_size: int = at_least(1)
    lengths: list[int] = at_least(1)  # noqa: RUF009 -- declares a field
    compared_lengths: list[int] = at_least(1)  # noqa: RUF009 -- declares a field
    one_sequence: list[int] = at_least(1)  # noqa: RUF009 -- declares a field
    batch_tokens: int = at_least(1)
    precisions: list[Literal["no", "bf16", "auto"]]
    threads: list[int] = at_least(1)  # noqa: RUF009 -- declares a field
    attention: list[str]
    repeats: int = at_least(1)
    updates: int = at_least(1)

    def __post_init__(self):
        check_models("speed.models", self.models)
        for name, values, allowed in (
            ("compared_lengths", self.compared_lengths, self.lengths),
            ("attention", self.attention, ATTENTION_BACKENDS),
        ):
            if not values or not set(values) <= set(allowed):
                raise ValueError(f"speed.{name}={values} must name some of {', '.join(map(str, allowed))}")
        if not self.precisions:
            raise ValueError("speed.precisions=[] must name at least one")


@dataclass(frozen=True)
class Setting:
    """How an update computes; `threads` is `None` on devices other than CPUs."""

    precision: str  # a value of PRECISIONS
    threads: int | None

    @property
    def is_bf16(self) -> bool:
        return self.precision == PRECISIONS["bf16"]


@dataclass
class Trainee:
    """A model that is measured, with its optimizer."""

    model: PreTrainedModel
    optimizer: torch.optim.Optimizer

    @property
    def is_transformer(self) -> bool:
        return self.model.config.model_type == VanillaTransformerConfig.model_type


def measure_speed(
    settings: SpeedConfig, device: torch.device, on_progress: Callable[[int, int, str], None]
) -> dict[str, Any]:
    """Measure forward pass, backward pass and Adam's update on random tokens, the models interleaved (A B C A B C).

    Returns:
        The part `speed` of the results; `vanilla_transformer.comparison.report` documents it.

    Raises:
        ValueError: models whose parameters differ by more than 5%; a precision that not all would have on this device;
            more threads than cores.
    """
    measured, left_out = settings_on(settings, device)
    training = measured[-1]
    trainees = _build_trainees(settings, device)
    cases = {(length, max(1, settings.batch_tokens // length)): [training] for length in settings.lengths}
    cases |= {case: measured for case in cases if case[0] in settings.compared_lengths}
    cases |= {(length, 1): measured for length in settings.one_sequence}
    rows: list[dict[str, Any]] = []
    for done, ((length, batch_size), in_settings) in enumerate(cases.items(), 1):
        rows += measure_case(settings, trainees, length, batch_size, in_settings)
        speeds = {row["model"]: median(row["tokens_per_second"]) for row in rows[-len(trainees) :]}
        fastest = max(speeds, key=lambda name: speeds[name])
        size = f"{batch_size} sequence{'s' * (batch_size > 1)} of {length} tokens"
        on_progress(done, len(cases), f"{size}: {fastest} is the fastest in {training.precision}")
    with _computing(training):
        kernels = {name: _kernels(settings, trainee, training.is_bf16) for name, trainee in trainees.items()}
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "training": asdict(training),
        "left_out": left_out,
        "parameters": {name: trainee.model.num_parameters() for name, trainee in trainees.items()},
        "kernels": kernels,
        "rows": rows,
    }


def settings_on(settings: SpeedConfig, device: torch.device) -> tuple[list[Setting], list[str]]:
    """The settings to measure on this device, that of training last, and why others are left out.

    Raises:
        ValueError: as `measure_speed`.
    """
    precisions, left_out = [], []
    for precision in settings.precisions:
        if precision == "auto":
            precision = choose_precision(device)
            if precision in precisions:
                left_out.append(f"training chooses {PRECISIONS[precision]} by itself, which is measured already")
                precisions.remove(precision)
        check_precision("speed.precisions", precision, settings.models, device)
        precisions.append(precision)
    threads: list[int | None] = [*settings.threads]
    if device.type == "cpu":
        check_threads("speed.threads", settings.threads)
    else:
        threads = [None]
        left_out.append(f"speed.threads are a CPU's, and the device is {device.type}")
    found = [Setting(PRECISIONS[precision], count) for precision, count in product(precisions, threads)]
    return list(dict.fromkeys(found)), left_out


def _build_trainees(settings: SpeedConfig, device: torch.device) -> dict[str, Trainee]:
    trainees = {}
    for name, section in settings.models.items():
        set_seed(1)
        config = model_config_of(section, vocab_size=settings.vocab_size)
        model = AutoModelForSeq2SeqLM.from_config(config).to(device).train()
        # The learning rate does not affect the time.
        trainees[name] = Trainee(model, torch.optim.Adam(model.parameters(), lr=1e-4, fused=True))
    check_parameters("speed.models", {name: trainee.model.num_parameters() for name, trainee in trainees.items()})
    return trainees


def measure_case(
    settings: SpeedConfig, trainees: dict[str, Trainee], length: int, batch_size: int, in_settings: Sequence[Setting]
) -> list[dict[str, Any]]:
    """The rows of all models at one length, setting by setting, whose repeats are interleaved, too."""
    batch = random_batch(next(iter(trainees.values())).model, batch_size, length)
    tokens = batch_size * length * settings.updates
    rows = []
    for setting in in_settings:
        with _computing(setting):
            for name, trainee in trainees.items():
                attention = warm_up(trainee, batch, settings.attention, setting.is_bf16)
                case = {"model": name, "length": length, "batch_size": batch_size, **asdict(setting)}
                rows.append(case | {"attention": attention, "tokens_per_second": []})
    for _ in range(settings.repeats):
        for row in rows:
            trainee, setting = trainees[row["model"]], Setting(row["precision"], row["threads"])
            if row["attention"] is not None:
                trainee.model.set_attn_implementation(row["attention"])
            with _computing(setting):
                seconds = time_updates(trainee, batch, settings.updates, setting.is_bf16)
            row["tokens_per_second"].append(tokens / seconds)
    return rows


def _kernels(settings: SpeedConfig, trainee: Trainee, is_bf16: bool) -> dict[str, Any]:
    """`describe_kernels`, with the layer's name in Table 1, and the attention backend that is the fastest there."""
    batch_size = max(2, settings.batch_tokens // LENGTHS[-1])
    batches = [random_batch(trainee.model, batch_size, length) for length in LENGTHS]
    attention = warm_up(trainee, batches[-1], settings.attention, is_bf16)
    layer = "self-attention" if trainee.is_transformer else "recurrent"
    return {"layer": layer, "attention": attention} | describe_kernels(trainee.model, batches, is_bf16)


def _computing(setting: Setting) -> AbstractContextManager[None]:
    return nullcontext() if setting.threads is None else cpu_threads(setting.threads)


def warm_up(trainee: Trainee, batch: dict[str, torch.Tensor], backends: Sequence[str], is_bf16: bool) -> str | None:
    """Update once: the first update of a shape allocates memory and selects kernels.

    Returns:
        The attention backend that the Transformer has now, the fastest in a second update; `None` for an RNN.
    """
    if not trainee.is_transformer:
        time_updates(trainee, batch, 1, is_bf16)
        return None
    seconds = {}
    for backend in backends:
        trainee.model.set_attn_implementation(backend)
        time_updates(trainee, batch, 1, is_bf16)
        seconds[backend] = time_updates(trainee, batch, 1, is_bf16)
    fastest = min(seconds, key=lambda backend: seconds[backend])
    trainee.model.set_attn_implementation(fastest)
    return fastest


def time_updates(trainee: Trainee, batch: dict[str, torch.Tensor], count: int, is_bf16: bool) -> float:
    """Update the model on one batch; return the seconds until its device has finished."""
    model, optimizer = trainee.model, trainee.optimizer
    start = time.perf_counter()
    for _ in range(count):
        with torch.autocast(model.device.type, torch.bfloat16, enabled=is_bf16):
            loss = model(**batch, skip_logits=True).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    if model.device.type != "cpu":  # an accelerator runs asynchronously
        torch.accelerator.synchronize(model.device)
    return time.perf_counter() - start
