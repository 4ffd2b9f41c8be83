# SPDX-License-Identifier: Apache-2.0
"""FSDP2: weights, gradients and Adam's averages shared out among the processes (Zhao et al. 2023).

`accelerate launch` asks for it, and transformers does it, by the models' own plans. Accelerate's way is not taken: it
ignores FSDP on CPUs, so that nothing of it could be tested without GPUs; it fails on tied tables; and it would put the
projection into a group of its own, whose weight the chunked loss reads from outside.
"""

import os
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import parse_flag_from_env
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from transformers.distributed.configuration_utils import DistributedConfig
from transformers.distributed.utils import TransformersDeviceMesh

from vanilla_transformer.seq2seq_base import BaseForConditionalGeneration

# What `accelerate launch` tells its processes: the values that are as here, lower case (None: nothing is said), and
# what to do about others. How checkpoints are cut up (FSDP_STATE_DICT_TYPE) is of no account: ours are whole.
HONOURED: dict[str, tuple[set[str | None], str]] = {
    "FSDP_VERSION": ({"2"}, "FSDP1 has no parameters with names; set it to 2"),
    "FSDP_OFFLOAD_PARAMS": ({None, "false"}, "weights stay on their device; set it to false"),
    "FSDP_RESHARD_AFTER_FORWARD": ({None, "true"}, "layers are always shared out again; set it to true"),
    "FSDP_CPU_RAM_EFFICIENT_LOADING": ({None, "false"}, "it would leave models unread; set it to false"),
    "FSDP_ACTIVATION_CHECKPOINTING": ({None, "false"}, "set training.gradient_checkpointing=true instead"),
    "FSDP_AUTO_WRAP_POLICY": ({None, "transformer_based_wrap"}, "each layer is a group of its own; leave it out"),
    "FSDP_TRANSFORMER_CLS_TO_WRAP": ({None}, "each layer is a group of its own; leave it out"),
    "FSDP_IGNORED_MODULES": ({None}, "all of the model is shared out; leave it out"),
    "ACCELERATE_USE_PARALLELISM_CONFIG": ({None, "false"}, "there is data parallelism alone; leave it out"),
}


def is_sharding_asked_for() -> bool:
    """Whether this process was started with FSDP.

    Raises:
        ValueError: FSDP1, or an option of FSDP that would not be honoured.
    """
    if not parse_flag_from_env("ACCELERATE_USE_FSDP"):
        return False
    check_launch_options(HONOURED)
    return True


def check_launch_options(options: dict[str, tuple[set[str | None], str]]) -> None:
    """Raise ValueError for a variable whose value is not among those that stand here; with the remedy."""
    for name, (honoured, remedy) in options.items():
        value = os.environ.get(name)
        if (value if value is None else value.lower()) not in honoured:
            raise ValueError(f"{name.lower()}={value!r} of accelerate launch cannot be honoured: {remedy}")


def shard(model: BaseForConditionalGeneration, accelerator: Accelerator) -> BaseForConditionalGeneration:
    """The same model, with a part of each parameter in each process; a single process keeps all of it.

    Every process must have made it. The optimizer is for the parameters that are there afterwards.
    """
    processes = accelerator.num_processes
    if processes == 1:
        return model
    # transformers' own mesh would be of the machine's GPUs, even for a run on its CPUs.
    mesh = init_device_mesh(
        accelerator.device.type, (1, 1, processes, 1), mesh_dim_names=("pp", "dp_replicate", "fsdp", "tp")
    )
    sharded: Any = type(model).maybe_distribute_model(
        model, DistributedConfig(fsdp_size=processes), TransformersDeviceMesh(dense_mesh=mesh, expert_mesh=mesh)
    )
    # With it `save_pretrained` would wait for all processes, though one alone writes what was gathered before.
    sharded.config.distributed_config = None
    return sharded


def is_sharded(model: torch.nn.Module) -> bool:
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def whole_weights(model: BaseForConditionalGeneration) -> dict[str, torch.Tensor]:
    """All weights of a sharded model, in every process; to be called by all of them."""
    whole: Any = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
    return whole
