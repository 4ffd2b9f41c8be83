# SPDX-License-Identifier: Apache-2.0
"""What a run needs, beside the weights, to go on to the bit: optimizer, schedule, progress and random states.

Accelerate's `save_state` writes these with pickle. To read a pickle is to run what it says, so whoever may write to a
run's folder could run code in the next run; and a parameter there has a number that a change of the model shifts. Here
all is JSON and safetensors, which hold values and nothing else, and a parameter has its name.
"""

import json
import logging
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import DistributedType
from safetensors.torch import load_file, save_file
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim.lr_scheduler import LRScheduler

from vanilla_transformer.training.progress import Progress

logger = logging.getLogger(__name__)

OPTIMIZER, OPTIMIZER_GROUPS = "optimizer.safetensors", "optimizer.json"
SCHEDULE, PROGRESS, GRADIENT_SCALER = "schedule.json", "progress.json", "gradient_scaler.json"
NAMELESS = {DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM}  # flat buffers in place of parameters


def random_states_file(process: int) -> str:
    """Of the process with this index."""
    return f"random_states_{process}.json"


@dataclass(frozen=True)
class RunState:
    """The parts of a run whose state changes with every update.

    Args:
        model: bare or as Accelerate has wrapped it; it names the optimizer's parameters.
        optimizer: the same.

    Raises:
        ValueError: Accelerate shares the optimizer out in a way that keeps no parameters with names.
    """

    accelerator: Accelerator
    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    schedule: LRScheduler
    progress: Progress

    def __post_init__(self) -> None:
        way = self.accelerator.distributed_type
        if way in NAMELESS or (way == DistributedType.FSDP and not self.accelerator.is_fsdp2):
            raise ValueError(
                f"distributed_type {way.value} cannot be checkpointed without pickles: its optimizer has no parameters "
                "with names; use MULTI_GPU or FSDP with fsdp_version 2"
            )

    def save(self, folder: Path) -> None:
        """To be called by all processes; each writes its random states, the main one all that they share."""
        _write_json(folder / random_states_file(self.accelerator.process_index), self._random_states())
        groups, tensors = self._optimizer_state()
        if not self.accelerator.is_main_process:
            return
        save_file(tensors, folder / OPTIMIZER)
        _write_json(folder / OPTIMIZER_GROUPS, groups)
        _write_json(folder / SCHEDULE, self.schedule.state_dict())
        _write_json(folder / PROGRESS, self.progress.state_dict())
        if self.accelerator.scaler is not None:
            _write_json(folder / GRADIENT_SCALER, self.accelerator.scaler.state_dict())

    def load(self, folder: Path) -> None:
        """To be called by all processes, after the weights are loaded."""
        self._load_optimizer_state(_read_json(folder / OPTIMIZER_GROUPS), load_file(folder / OPTIMIZER))
        self.schedule.load_state_dict(_read_json(folder / SCHEDULE))
        self.progress.load_state_dict(_read_json(folder / PROGRESS))
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(_read_json(folder / GRADIENT_SCALER))
        path = folder / random_states_file(self.accelerator.process_index)
        if path.is_file():
            self._load_random_states(_read_json(path))  # last: whatever is made before may draw numbers
        else:
            logger.warning(f"{folder} is of fewer processes: number {self.accelerator.process_index} starts anew")

    def _optimizer_state(self) -> tuple[list[dict[str, Any]], dict[str, torch.Tensor]]:
        """Groups with their parameters' names, and `name.exp_avg` and the like; of sharded parameters, whole tensors.

        All processes gather them, and only the main one gets tensors.
        """
        names, optimizer = self._names(), self._bare_optimizer()
        groups, tensors = [], {}
        for group in optimizer.param_groups:
            groups.append({**group, "params": [names[parameter] for parameter in group["params"]]})
            for parameter in group["params"]:
                for key, tensor in optimizer.state[parameter].items() if parameter in optimizer.state else ():
                    whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
                    if self.accelerator.is_main_process:
                        tensors[f"{names[parameter]}.{key}"] = whole.cpu().contiguous()
        return groups, tensors

    def _load_optimizer_state(self, groups: list[dict[str, Any]], tensors: dict[str, torch.Tensor]) -> None:
        """The opposite; the optimizer itself puts every tensor on its parameter's device."""
        names, optimizer = self._names(), self._bare_optimizer()
        here = [[names[parameter] for parameter in group["params"]] for group in optimizer.param_groups]
        there = [group["params"] for group in groups]
        if here != there:
            raise ValueError("the checkpoint's optimizer has other parameters than the model; start anew")
        for group in groups:
            for key, value in group.items():
                if isinstance(optimizer.defaults.get(key), tuple):
                    group[key] = tuple(value)  # JSON has lists alone
        parameters = {names[parameter]: parameter for group in optimizer.param_groups for parameter in group["params"]}
        numbers = {name: number for number, name in enumerate(parameters)}
        state: dict[int, dict[str, torch.Tensor]] = {}
        for key, tensor in tensors.items():
            name, _, kind = key.rpartition(".")
            state.setdefault(numbers[name], {})[kind] = _laid_out_like(parameters[name], tensor)
        numbered = [{**group, "params": [numbers[name] for name in group["params"]]} for group in groups]
        optimizer.load_state_dict({"state": state, "param_groups": numbered})

    def _names(self) -> dict[torch.Tensor, str]:
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        return {parameter: name for name, parameter in model.named_parameters()}

    def _bare_optimizer(self) -> torch.optim.Optimizer:
        return self.optimizer.optimizer if isinstance(self.optimizer, AcceleratedOptimizer) else self.optimizer

    def _random_states(self) -> dict[str, Any]:
        device = self.accelerator.device
        numpy: Any = np.random.get_state(legacy=False)
        numpy["state"]["key"] = numpy["state"]["key"].tolist()
        return {
            "python": random.getstate(),
            "numpy": numpy,
            "torch": _hexadecimal(torch.get_rng_state()),
            "cuda": _hexadecimal(torch.cuda.get_rng_state(device)) if device.type == "cuda" else None,
        }

    def _load_random_states(self, states: dict[str, Any]) -> None:
        version, numbers, gauss = states["python"]
        random.setstate((version, tuple(numbers), gauss))
        np.random.set_state(states["numpy"])
        torch.set_rng_state(_bytes(states["torch"]))
        if self.accelerator.device.type == "cuda":
            if states["cuda"] is None:
                logger.warning("the checkpoint was written without a GPU: random numbers on this one start anew")
            else:
                torch.cuda.set_rng_state(_bytes(states["cuda"]), self.accelerator.device)


def _laid_out_like(parameter: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """This process's part, if the parameter is sharded and the tensor has an element for each of its own."""
    if not isinstance(parameter, DTensor) or tensor.shape != parameter.shape:
        return tensor
    tensor = tensor.to(parameter.device)
    return distribute_tensor(tensor, parameter.device_mesh, parameter.placements, src_data_rank=None)  # all have it


def _hexadecimal(state: torch.Tensor) -> str:
    return bytes(state.tolist()).hex()


def _bytes(hexadecimal: str) -> torch.Tensor:
    return torch.tensor(list(bytes.fromhex(hexadecimal)), dtype=torch.uint8)


def _write_json(path: Path, values: Any) -> None:
    path.write_text(json.dumps(values) + "\n", encoding="utf-8")


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))
