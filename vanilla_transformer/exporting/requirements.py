# SPDX-License-Identifier: Apache-2.0
"""The architectures that a runtime supports."""

from typing import Any, Literal

from transformers import PreTrainedConfig

from vanilla_transformer.configuration_vanilla_transformer import VanillaTransformerConfig

Quantization = Literal["float32", "int8"]  # of weights


def check_requirements(config: PreTrainedConfig, runtime: str, required: dict[str, tuple[Any, str]]) -> None:
    """Raise ValueError, in one line with the reason, unless a runtime can have this architecture.

    Args:
        runtime: its name, for messages.
        required: field → the only value that the runtime can have, and why. A field that `config` lacks has this value.
    """
    if config.model_type != VanillaTransformerConfig.model_type:
        raise ValueError(f"model_type={config.model_type!r}: {runtime} is for Transformers, and this is none")
    for name, (value, why) in required.items():
        if (found := getattr(config, name, value)) != value:
            raise ValueError(f"{name}={found!r}: {runtime} can have only {value!r}; {why}")
    if not isinstance(config.eos_token_id, int):
        raise ValueError(f"eos_token_id={config.eos_token_id!r} must be one token to be exported")
