# SPDX-License-Identifier: Apache-2.0
"""FSDP2: weights, gradients and Adam's moments sharded over the processes (Zhao et al. 2023).

`accelerate launch` requests it, and transformers does it, by the models' own plans. Accelerate's way is not taken: it
ignores FSDP on CPUs, so that nothing could be tested without GPUs; it fails on tied embeddings; and it would put the
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
from transformers import AutoModelForSeq2SeqLM
from transformers.distributed.configuration_utils import DistributedConfig

from vanilla_transformer.seq2seq_base import BaseForConditionalGeneration
from vanilla_transformer.transformers_differences import mesh_for_fsdp

# Environment variables of `accelerate launch`: the supported values in lower case (None: not set), and the remedy for
# others. FSDP_STATE_DICT_TYPE has no effect: our checkpoints are never sharded.
LaunchOptions = dict[str, tuple[set[str | None], str]]
SUPPORTED_OPTIONS: LaunchOptions = {
    "FSDP_VERSION": ({"2"}, "FSDP1 has no parameters with names; set it to 2"),
    "FSDP_OFFLOAD_PARAMS": ({None, "false"}, "weights stay on their device; set it to false"),
    "FSDP_RESHARD_AFTER_FORWARD": ({None, "true"}, "layers are always sharded again; set it to true"),
    "FSDP_CPU_RAM_EFFICIENT_LOADING": ({None, "false"}, "it would leave models unread; set it to false"),
    "FSDP_ACTIVATION_CHECKPOINTING": ({None, "false"}, "set training.gradient_checkpointing=true instead"),
    "FSDP_AUTO_WRAP_POLICY": ({None, "transformer_based_wrap"}, "each layer is a group of its own; leave it out"),
    "FSDP_TRANSFORMER_CLS_TO_WRAP": ({None}, "each layer is a group of its own; leave it out"),
    "FSDP_IGNORED_MODULES": ({None}, "the whole model is sharded; leave it out"),
    "ACCELERATE_USE_PARALLELISM_CONFIG": ({None, "false"}, "only data parallelism is supported; leave it out"),
}


def fsdp_requested() -> bool:
    """Whether `accelerate launch` started this process with FSDP.

    Raises:
        ValueError: FSDP1, or an unsupported option of FSDP2.
    """
    if not parse_flag_from_env("ACCELERATE_USE_FSDP"):
        return False
    check_launch_options(SUPPORTED_OPTIONS)
    return True


def check_launch_options(supported: LaunchOptions) -> None:
    """Raise ValueError, with the remedy, for the first environment variable that has an unsupported value."""
    for name, (values, remedy) in supported.items():
        value = os.environ.get(name)
        if (value if value is None else value.lower()) not in values:
            raise ValueError(f"{name.lower()}={value!r} of accelerate launch cannot be honoured: {remedy}")


def shard_model(model: BaseForConditionalGeneration, accelerator: Accelerator) -> BaseForConditionalGeneration:
    """Shard the model's parameters over the processes; a single process keeps them whole.

    Every process must have built the model. Build the optimizer afterwards, from the sharded parameters.
    """
    processes = accelerator.num_processes
    if processes == 1:
        return model
    # transformers' own mesh would take the machine's GPUs, even for a run on its CPUs.
    mesh = init_device_mesh(
        accelerator.device.type, (1, 1, processes, 1), mesh_dim_names=("pp", "dp_replicate", "fsdp", "tp")
    )
    sharded: Any = type(model).maybe_distribute_model(
        model, DistributedConfig(fsdp_size=processes), mesh_for_fsdp(mesh)
    )
    # With it `save_pretrained` would wait for all processes, though the main one alone writes the gathered weights.
    sharded.config.distributed_config = None
    return sharded


def is_sharded(model: torch.nn.Module) -> bool:
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def full_state_dict(model: torch.nn.Module, cpu_offload: bool = False) -> dict[str, Any]:
    """All weights of a sharded model; every process must call this, and with `cpu_offload` only the main one gets them.

    Tied weights are gathered, and returned, once for each of their names.
    """
    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=cpu_offload))


def unsharded_copy(model: BaseForConditionalGeneration, device: torch.device) -> BaseForConditionalGeneration:
    """A copy with all weights of a sharded model, in every process; all of them must call this."""
    with torch.random.fork_rng(devices=[]):  # the copy's initial weights must not draw from the run's generator
        copy = AutoModelForSeq2SeqLM.from_config(model.config)
    copy.generation_config = model.generation_config
    copy.to(device).load_state_dict(full_state_dict(model))
    return copy.train(model.training)
