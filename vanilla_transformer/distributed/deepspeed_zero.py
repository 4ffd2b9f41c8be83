# SPDX-License-Identifier: Apache-2.0
"""ZeRO-2: gradients and Adam's moments sharded over the processes by DeepSpeed (Rajbhandari et al. 2020).

`accelerate launch` requests it. Accelerate's way is not taken: on CPUs it leaves every process alone, so that nothing
could be tested without GPUs; it steps within the last backward pass, before anyone can judge the gradients; and for
bf16 it casts the weights instead of autocasting. DeepSpeed's own checkpoints are pickles and are never written:
`ZeroOptimizer` gathers what our checkpoints need.
"""

from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import is_deepspeed_available, parse_flag_from_env

from vanilla_transformer.distributed.fsdp import LaunchOptions, check_launch_options

SUPPORTED_OPTIONS: LaunchOptions = {
    "ACCELERATE_DEEPSPEED_ZERO_STAGE": ({None, "2"}, "set it to 2; to shard weights too, use FSDP2"),
    "ACCELERATE_DEEPSPEED_CONFIG_FILE": ({None}, "the run's own configuration decides; leave it out"),
    "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": ({None, "none"}, "moments stay on their device; set it to none"),
    "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": ({None, "none"}, "weights stay on their device; set it to none"),
    "ACCELERATE_DEEPSPEED_ZERO3_INIT": ({None, "false"}, "weights are not sharded; set it to false"),
    "ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL": ({None, "false"}, "weights are saved as they are; set it to false"),
    "ACCELERATE_DEEPSPEED_MOE_LAYER_CLS_NAMES": ({None}, "there are no experts; leave it out"),
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": ({None, "1"}, "set training.gradient_accumulation_steps instead"),
    "ACCELERATE_GRADIENT_CLIPPING": ({None, "none"}, "set optimizer.max_grad_norm instead"),
    "ACCELERATE_USE_PARALLELISM_CONFIG": ({None, "false"}, "only data parallelism is supported; leave it out"),
}
BUCKET = 50_000_000  # elements in one reduction over the processes; DeepSpeed's default would take 2 GB
MOMENTS = ("exp_avg", "exp_avg_sq")


def zero_requested(mixed_precision: str) -> bool:
    """Whether `accelerate launch` started this process with DeepSpeed.

    Raises:
        ValueError: an unsupported option or precision, or DeepSpeed is not installed.
    """
    if not parse_flag_from_env("ACCELERATE_USE_DEEPSPEED"):
        return False
    check_launch_options(SUPPORTED_OPTIONS)
    if mixed_precision == "fp16":
        raise ValueError("training.mixed_precision='fp16' is not for ZeRO-2; choose bf16, no or auto")
    if not is_deepspeed_available():
        raise ValueError("ZeRO-2 needs DeepSpeed, which is not installed: pip install 'vanilla-transformer[zero]'")
    return True


def shard_optimizer(
    model: torch.nn.Module, adam: torch.optim.Optimizer, accelerator: Accelerator, max_grad_norm: float | None
) -> tuple[torch.nn.Module, "ZeroOptimizer"]:
    """DeepSpeed's engine, to be called as the model, and the sharded optimizer.

    Raises:
        ValueError: DeepSpeed computes on another kind of device than the run.
    """
    import deepspeed  # pyright: ignore[reportMissingImports] -- an extra that `dev` is without
    from deepspeed.accelerator import get_accelerator  # pyright: ignore[reportMissingImports]

    device = get_accelerator().device_name()
    if device != accelerator.device.type:
        raise ValueError(
            f"DeepSpeed computes on {device!r} and this run on {accelerator.device.type!r}; set the environment "
            f"variable DS_ACCELERATOR={accelerator.device.type}"
        )
    if device == "cpu":  # DeepSpeed would compile for minutes what only inference uses
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    parameters = [list(group["params"]) for group in adam.param_groups]
    settings = {
        "train_micro_batch_size_per_gpu": 1,  # for its statistics
        "gradient_accumulation_steps": 1,  # `begin_micro_batch` tells which backward pass is an update's last
        "gradient_clipping": max_grad_norm or 0.0,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {"stage": 2, "reduce_bucket_size": BUCKET, "allgather_bucket_size": BUCKET},
    }
    engine, *_ = deepspeed.initialize(model=model, optimizer=adam, config=settings)
    return engine, ZeroOptimizer(engine, adam, parameters)


class ZeroOptimizer(torch.optim.Optimizer):
    """Adam with a shard of its moments in each process; loop and checkpoints use it as any optimizer.

    DeepSpeed keeps the moments in one flat vector. `state` gathers them in the shapes of the parameters, so all
    processes must read it together.

    Args:
        adam: its groups hold DeepSpeed's flat vectors.
        parameters: the parameters of each group, as they were before.
    """

    def __init__(self, engine: Any, adam: torch.optim.Optimizer, parameters: list[list[torch.Tensor]]):
        self.engine = engine
        self.adam = adam
        self.parameters = parameters
        self.defaults = adam.defaults

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        groups = zip(self.adam.param_groups, self.parameters, strict=True)
        return [{**group, "params": parameters} for group, parameters in groups]

    @property
    def state(self) -> Mapping[torch.Tensor, dict[str, torch.Tensor]]:
        """Empty before the first step."""
        return GatheredState(self.adam, self.parameters)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load after the weights: each process takes its shard of the whole state, which all of them have read."""
        from deepspeed.utils import (  # pyright: ignore[reportMissingImports]
            lazy_init_hp_params_optimizer_state,
            safe_set_full_optimizer_state,
        )

        self.engine.optimizer.refresh_fp32_params()  # the optimizer's own copies of the weights
        saved = zip(self.adam.param_groups, self.parameters, state_dict["param_groups"], strict=True)
        for group, parameters, values in saved:
            group |= {key: value for key, value in values.items() if key != "params"}
            if not state_dict["state"]:
                continue
            [flat] = group["params"]
            states = [state_dict["state"][number] for number in values["params"]]
            self.adam.state[flat] = {"step": states[0]["step"].to(flat.device)}
            self.adam.state[flat] |= {key: torch.zeros_like(flat) for key in MOMENTS}
            lazy_init_hp_params_optimizer_state(parameters, flat, self.adam.state)
            for parameter, state in zip(parameters, states, strict=True):
                for key in MOMENTS:
                    safe_set_full_optimizer_state(parameter, state[key], key)

    def begin_micro_batch(self, is_last: bool) -> None:
        """Call before the forward pass of each of an update's micro-batches."""
        self.engine.set_gradient_accumulation_boundary(is_last)

    def gradient_norm(self) -> torch.Tensor:
        """The norm of the whole gradient, the same in every process; `step` clips by it."""
        return self.engine.optimizer.scaled_global_norm()

    def step(self, closure: None = None) -> None:
        assert closure is None
        self.engine.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.engine.optimizer.zero_grad(set_to_none)  # drops what a skipped update has gathered, too


class GatheredState(dict[torch.Tensor, Any]):
    """Adam's state of each parameter, gathered when it is read; all processes must read it together."""

    def __init__(self, adam: torch.optim.Optimizer, parameters: list[list[torch.Tensor]]):
        for group, of_group in zip(adam.param_groups, parameters, strict=True):
            [flat] = group["params"]
            if adam.state[flat]:
                self.update(dict.fromkeys(of_group, adam.state[flat]["step"]))

    def __getitem__(self, parameter: torch.Tensor) -> dict[str, torch.Tensor]:
        from deepspeed.utils import safe_get_full_optimizer_state  # pyright: ignore[reportMissingImports]

        moments = {key: safe_get_full_optimizer_state(parameter, key) for key in MOMENTS}
        return {"step": super().__getitem__(parameter).clone(), **moments}
