# SPDX-License-Identifier: Apache-2.0
"""Where the supported versions of transformers differ, so that the models are written once, in the newest one's words.

The version decides. Each block is for the versions before the one that it names, and falls away with them.
"""

from typing import TYPE_CHECKING, Any

from .transformers_version import is_at_least

# The cache, as an argument of models and of `generate`, and as a field of their outputs.
CACHE = "cache" if is_at_least("5.24") else "past_key_values"

# Whether a pipeline gives `generate` what the user gives. Before 5.20 it makes a whole generation config of that.
PIPELINE_KEEPS_ARGUMENTS = is_at_least("5.20")

if TYPE_CHECKING or is_at_least("5.24"):
    from transformers.modeling_layers import GradientCheckpointingLayer
    from transformers.modeling_outputs import (
        BaseModelOutputWithPastAndCrossAttentions,
        Seq2SeqLMOutput,
        Seq2SeqModelOutput,
    )
    from transformers.utils.deprecation import deprecate_kwarg
else:
    import functools
    import inspect

    from transformers import modeling_layers, modeling_outputs
    from transformers.utils import logging

    class WithCache:
        """An output whose `past_key_values` has the name `cache` too."""

        def __init__(self, *args, cache=None, **fields):
            if cache is not None:
                fields["past_key_values"] = cache
            super().__init__(*args, **fields)

        @property
        def cache(self):
            return self.past_key_values

    class BaseModelOutputWithPastAndCrossAttentions(
        WithCache, modeling_outputs.BaseModelOutputWithPastAndCrossAttentions
    ):
        pass

    class Seq2SeqLMOutput(WithCache, modeling_outputs.Seq2SeqLMOutput):
        pass

    class Seq2SeqModelOutput(WithCache, modeling_outputs.Seq2SeqModelOutput):
        pass

    class GradientCheckpointingLayer(modeling_layers.GradientCheckpointingLayer):
        """As in transformers, which takes away the cache, as each layer is computed twice, by its older name only."""

        def __call__(self, *args, **kwargs):
            if self.gradient_checkpointing and self.training and kwargs.get("cache") is not None:
                logging.get_logger(__name__).warning_once("gradient checkpointing without a cache: setting cache=None")
                kwargs["cache"] = None
            return super().__call__(*args, **kwargs)

    def deprecate_kwarg(old_name, _version, new_name):
        """The argument has both names, without a warning: here transformers itself passes, and looks for, the old."""

        def decorate(forward):
            @functools.wraps(forward)
            def with_either_name(self, *args, **kwargs):
                if old_name in kwargs:
                    if kwargs.get(new_name) is not None:
                        raise ValueError(f"{old_name} and {new_name} are the same argument: give one of them")
                    kwargs[new_name] = kwargs.pop(old_name)
                return forward(self, *args, **kwargs)

            signature = inspect.signature(forward)
            parameters = [
                parameter.replace(name=old_name) if parameter.name == new_name else parameter
                for parameter in signature.parameters.values()
            ]
            with_either_name.__signature__ = signature.replace(parameters=parameters)
            return with_either_name

        return decorate


if TYPE_CHECKING or is_at_least("5.23"):
    from transformers.utils.output_capturing import OutputRecorder
else:
    from transformers.utils import output_capturing

    def OutputRecorder(target_class, num_hidden_layers_key=None, **options):
        """Without the number of layers, which only negative indices of hidden states need; here there are none."""
        return output_capturing.OutputRecorder(target_class, **options)


def recompute_activations(model: Any) -> None:
    """Let the layers compute their activations again in the backward pass instead of keeping them."""
    if is_at_least("5.23"):
        model.activation_checkpointing_enable()
    else:
        model.gradient_checkpointing_enable()


def generate_arguments(pipeline: Any, given: dict[str, Any], **overrides: Any) -> dict[str, Any]:
    """The arguments of `generate` in a pipeline, from those `given` to its call."""
    if not PIPELINE_KEEPS_ARGUMENTS:
        return given | overrides  # `given` has those of the pipeline too
    return pipeline._prepare_generate_kwargs(given, **overrides)


def restore_removed_task(task: str) -> None:
    """Let `pipeline` take a task that transformers has removed; until 5.18 a removed one was simply unknown."""
    if is_at_least("5.19"):
        from transformers.pipelines import REMOVED_TASKS

        REMOVED_TASKS.pop(task, None)


def is_data_parallel(distributed_config: Any) -> bool:
    """Whether FSDP2 has several processes, replicas included, which there are since 5.23; `None`: no parallelism."""
    if distributed_config is None:
        return False
    return (distributed_config.dp_size if is_at_least("5.23") else distributed_config.fsdp_size or 1) > 1


def check_tensor_parallel_plan(model: Any, distributed_config: Any) -> None:
    """Raise ValueError for tensor parallelism of a model without a plan; before 5.23 transformers would do nothing."""
    if is_at_least("5.23") or distributed_config is None:
        return
    given = distributed_config.tp_plan  # a plan, or "auto": the model's
    if (distributed_config.tp_size or 1) > 1 and not (given if isinstance(given, dict) else model.tp_plan):
        name = type(model).__name__
        raise ValueError(f"`tp_size={distributed_config.tp_size}` was requested, but `{name}` has no `tp_plan`")


def mesh_for_fsdp(mesh: Any) -> Any:
    """The mesh argument of `maybe_distribute_model`, for a `DeviceMesh` with a dimension "fsdp"."""
    if not is_at_least("5.19"):
        return mesh
    from transformers.distributed.utils import TransformersDeviceMesh

    return TransformersDeviceMesh(dense_mesh=mesh, expert_mesh=mesh)
