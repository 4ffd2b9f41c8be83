# SPDX-License-Identifier: Apache-2.0
"""The state of a training: model, optimizer, schedule, progress, and what resuming to the bit needs of them on disk.

Accelerate's `save_state` writes pickles. Reading a pickle executes it, so whoever may write to a run's folder could run
code in the next run; and it numbers parameters, so that a change of the model would shift them. Here everything is JSON
and safetensors, which hold nothing but values, and parameters have names.
"""

import json
import logging
import random
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import gather_object
from safetensors.torch import load_file, save_file
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim.lr_scheduler import LRScheduler

from vanilla_transformer.training.muon import MuonWithAdam

logger = logging.getLogger(__name__)

OPTIMIZER, OPTIMIZER_GROUPS = "optimizer.safetensors", "optimizer.json"
SCHEDULE, PROGRESS, GRADIENT_SCALER = "schedule.json", "progress.json", "gradient_scaler.json"


@dataclass
class Progress:
    """How far a run has come; saved in every checkpoint.

    Args:
        updates: updates of the weights so far.
        epoch: finished epochs.
        batches: micro-batches of the current epoch that each process has consumed since there are `processes`.
        seconds: time in updates, summed over resumed parts; validation and checkpoints are not counted.
        agreed_seconds: the most of any process when it sent the last update that is counted; the same in all of them.
        target_tokens: target tokens trained on, over all processes.
        best_score: best validation so far by `best_by`, negated where less is better; `None` before the first.
        validated_updates: `updates` at the last validation.
        validations_since_best: validations in a row that were no better.
        processes: the number of processes.
        pairs: in the training corpus; `None` for a stream.
        corpus, validation_corpus: `data.corpus.fingerprint` of the training and the validation corpus.
        begun_epoch, begun_pairs: the epoch in which the number of processes last changed, and how many of its pairs
            were consumed before.
        begun_updates: the updates before that change.
        skipped_updates: updates whose loss or gradient was not finite; `updates` does not count them.
        halved_batches: how often a micro-batch, or a part of it, was halved because it did not fit in memory.
        max_positions: source and target positions of a batch, padding included, that fit in memory; larger batches
            are halved. `None`: all batches fitted so far.
        proven_positions, newest_positions: those of the largest batch that has fitted in any process, up to the last
            but one update, which several processes go by, and up to the last.
    """

    updates: int = 0
    epoch: int = 0
    batches: int = 0
    seconds: float = 0.0
    agreed_seconds: float = 0.0
    target_tokens: int = 0
    best_score: float | None = None
    validated_updates: int = 0
    validations_since_best: int = 0
    processes: int = 1
    pairs: int | None = None
    corpus: dict[str, str] = field(default_factory=dict)
    validation_corpus: dict[str, str] = field(default_factory=dict)
    begun_epoch: int = 0
    begun_pairs: int = 0
    begun_updates: int = 0
    skipped_updates: int = 0
    halved_batches: int = 0
    max_positions: int | None = None
    proven_positions: int = 0
    newest_positions: int = 0


@dataclass(frozen=True)
class TrainState:
    """Everything that an update changes.

    Args:
        model: bare, or as Accelerate has wrapped it; names the optimizer's parameters.
        optimizer: bare, or as Accelerate has wrapped it.
    """

    accelerator: Accelerator
    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    schedule: LRScheduler
    progress: Progress

    def _random_states_file(self) -> str:
        return f"random_states_{self.accelerator.process_index}.json"

    def bare_model(self) -> Any:
        """The model without what Accelerate has wrapped around it."""
        return self.accelerator.unwrap_model(self.model, keep_torch_compile=False)

    def save(self, folder: Path) -> None:
        """Save all but the weights; all processes must call this, and the main one writes."""
        self.copy()(folder)

    def copy(self) -> Callable[[Path], None]:
        """Copy all but the weights; all processes must call this.

        Returns:
            Writes the copy into a folder, later and from any thread; other processes than the main one write nothing.
        """
        states = gather_object([self._random_states()])  # of each process
        groups, tensors = self._optimizer_state()
        files = {f"random_states_{process}.json": state for process, state in enumerate(states)}
        files |= {OPTIMIZER_GROUPS: groups, SCHEDULE: self.schedule.state_dict(), PROGRESS: asdict(self.progress)}
        if self.accelerator.scaler is not None:
            files[GRADIENT_SCALER] = self.accelerator.scaler.state_dict()
        texts = {name: json.dumps(values) + "\n" for name, values in files.items()}
        is_main = self.accelerator.is_main_process

        def write(folder: Path) -> None:
            for name, text in texts.items() if is_main else ():
                (folder / name).write_text(text, encoding="utf-8")
            if is_main:
                save_file(tensors, folder / OPTIMIZER)

        return write

    def load(self, folder: Path) -> None:
        """Load all but the weights, which must be loaded already; all processes must call this."""
        self._load_optimizer_state(_read_json(folder / OPTIMIZER_GROUPS), load_file(folder / OPTIMIZER))
        self.schedule.load_state_dict(_read_json(folder / SCHEDULE))
        progress = _read_json(folder / PROGRESS)
        if "best_bleu" in progress:  # of a version that knew no other best
            progress["best_score"] = progress.pop("best_bleu")
        vars(self.progress).update(progress)
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(_read_json(folder / GRADIENT_SCALER))
        path = folder / self._random_states_file()
        if path.is_file():
            self._load_random_states(_read_json(path))  # last, because loading may draw random numbers
        else:
            process = self.accelerator.process_index
            logger.warning(f"{folder} is of fewer processes: dropout of process {process} begins by a seed of its own")

    def load_moments(self, folder: Path) -> None:
        """Begin with the optimizer's moments in another run's checkpoint; rows that its vocabulary lacks have zeros.

        Raises:
            FileNotFoundError: the folder is no checkpoint.
            ValueError: a checkpoint of another optimizer, or of a model with other parameters.
        """
        if not (folder / OPTIMIZER).is_file():
            raise FileNotFoundError(
                f"optimizer.keep_state=true: {folder} has no {OPTIMIZER}; give model= a folder of a run's checkpoints/"
            )
        tensors = load_file(folder / OPTIMIZER)
        shapes = {name: parameter.shape for parameter, name in self._names().items()}
        is_muon = isinstance(self._bare_optimizer(), MuonWithAdam)
        if any(name.endswith(".momentum_buffer") for name in tensors) != is_muon:
            trained, name = ("Adam", "muon") if is_muon else ("Muon", "adam")
            raise ValueError(
                f"optimizer.keep_state=true: {folder} was trained by {trained}; change optimizer.name={name}"
            )
        for name, tensor in tensors.items():
            shape = shapes.get(name.rpartition(".")[0])
            if tensor.dim() and shape is not None and len(tensor) < shape[0]:
                tensors[name] = torch.cat([tensor, tensor.new_zeros(shape[0] - len(tensor), *tensor.shape[1:])])
        self._load_optimizer_state(self._optimizer_state()[0], tensors)

    def _optimizer_state(self) -> tuple[list[dict[str, Any]], dict[str, torch.Tensor]]:
        """Groups with their parameters' names, and tensors `name.exp_avg` and so on, unsharded.

        All processes gather the tensors, and only the main one gets them.
        """
        names, optimizer = self._names(), self._bare_optimizer()
        groups, tensors = [], {}
        for group in optimizer.param_groups:
            groups.append({**group, "params": [names[parameter] for parameter in group["params"]]})
            for parameter in group["params"]:
                for key, tensor in optimizer.state[parameter].items() if parameter in optimizer.state else ():
                    full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
                    if self.accelerator.is_main_process:
                        tensors[f"{names[parameter]}.{key}"] = full.to("cpu", copy=True).contiguous()
        return groups, tensors

    def _load_optimizer_state(self, groups: list[dict[str, Any]], tensors: dict[str, torch.Tensor]) -> None:
        """The optimizer itself puts every tensor on its parameter's device."""
        names, optimizer = self._names(), self._bare_optimizer()
        expected = [[names[parameter] for parameter in group["params"]] for group in optimizer.param_groups]
        if [group["params"] for group in groups] != expected:
            raise ValueError("the checkpoint's optimizer has other parameters than the model; start anew")
        for group in groups:
            for key, value in group.items():
                if isinstance(optimizer.defaults.get(key), tuple):
                    group[key] = tuple(value)  # which JSON turned into a list
        parameters = {names[parameter]: parameter for group in optimizer.param_groups for parameter in group["params"]}
        numbers = {name: number for number, name in enumerate(parameters)}
        state: dict[int, dict[str, torch.Tensor]] = {}
        for key, tensor in tensors.items():
            name, _, kind = key.rpartition(".")
            state.setdefault(numbers[name], {})[kind] = _shard_like(parameters[name], tensor)
        numbered = [{**group, "params": [numbers[name] for name in group["params"]]} for group in groups]
        optimizer.load_state_dict({"state": state, "param_groups": numbered})

    def _names(self) -> dict[torch.Tensor, str]:
        return {parameter: name for name, parameter in self.bare_model().named_parameters()}

    def _bare_optimizer(self) -> torch.optim.Optimizer:
        return self.optimizer.optimizer if isinstance(self.optimizer, AcceleratedOptimizer) else self.optimizer

    def _random_states(self) -> dict[str, Any]:
        device = self.accelerator.device
        numpy: Any = np.random.get_state(legacy=False)
        numpy["state"]["key"] = numpy["state"]["key"].tolist()
        states = {"python": random.getstate(), "numpy": numpy, "torch": _to_hex(torch.get_rng_state())}
        if device.type != "cpu":  # "cuda", "mps"
            states[device.type] = _to_hex(torch.get_device_module(device).get_rng_state(device))
        return states

    def _load_random_states(self, states: dict[str, Any]) -> None:
        version, numbers, gauss = states["python"]
        random.setstate((version, tuple(numbers), gauss))
        np.random.set_state(states["numpy"])
        torch.set_rng_state(_from_hex(states["torch"]))
        device = self.accelerator.device
        if device.type == "cpu":
            return
        if states.get(device.type) is None:
            logger.warning(
                f"the checkpoint was written without {device.type}: random numbers on this device start anew"
            )
        else:
            torch.get_device_module(device).set_rng_state(_from_hex(states[device.type]), device)


def _shard_like(parameter: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """This process's shard of the tensor, if the parameter is sharded and has its shape, unlike Adam's `step`."""
    if not isinstance(parameter, DTensor) or tensor.shape != parameter.shape:
        return tensor
    tensor = tensor.to(parameter.device)
    return distribute_tensor(tensor, parameter.device_mesh, parameter.placements, src_data_rank=None)  # all have it


def _to_hex(state: torch.Tensor) -> str:
    return bytes(state.tolist()).hex()


def _from_hex(text: str) -> torch.Tensor:
    return torch.tensor(list(bytes.fromhex(text)), dtype=torch.uint8)


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))
