# SPDX-License-Identifier: Apache-2.0
"""What decodes: the loops compiled for this machine, or PyTorch's operations."""

import logging
from functools import cache
from typing import Any, Literal

import torch

from vanilla_transformer.inference.native.compiler import library
from vanilla_transformer.inference.native.transformer import NativeDecoder
from vanilla_transformer.modeling_vanilla_transformer import VanillaTransformerForConditionalGeneration
from vanilla_transformer.packed_linear import Precision
from vanilla_transformer.seq2seq_base import is_unmodified

Engine = Literal["auto", "native", "torch"]
ENGINES = ("auto", "native", "torch")

logger = logging.getLogger(__name__)


def native_unsupported_reason(model: Any, precision: Precision) -> str | None:
    """Why the compiled loops cannot decode this model, on its device, in this precision; `None`: they can."""
    if not isinstance(model, VanillaTransformerForConditionalGeneration):
        return f"it decodes the Transformer, and this is a {type(model).__name__}"
    if model.device.type != "cpu":
        return f"it computes on a CPU, and the model is on {model.device}"
    if precision == "bfloat16" or model.dtype != torch.float32:
        return (
            f"it computes in float32 and int8, and precision={precision!r} with a model in {model.dtype} is asked for"
        )
    if model.config.activation_function != "relu":
        return f"it knows the paper's ReLU, and the model has activation_function={model.config.activation_function!r}"
    if not (is_unmodified(model.get_encoder()) and model.can_build_decoder()):
        return "the model has adapters, hooks, shards or replaced modules"
    return None


def _why_not_here() -> str | None:
    try:
        library()
    except ValueError as error:
        return str(error)
    return None


@cache
def _say_once(reason: str) -> None:
    logger.warning("the native engine is not available, and PyTorch decodes, several times slower: %s", reason)


def native_decoder(model: Any, precision: Precision, engine: Engine) -> NativeDecoder | None:
    """The compiled loops with this model's weights; `None`: PyTorch decodes.

    Args:
        engine: "auto": compiled where that is possible; "native": an error where it is not. Where "auto" falls back to
            PyTorch because of this machine, it logs a warning, once for each reason. It logs nothing where the caller's
            own choice (model, device, precision) excludes the engine.

    Raises:
        ValueError: an unknown engine; "native" where it cannot be.
    """
    if engine not in ENGINES:
        raise ValueError(f"engine={engine!r} must be one of {', '.join(ENGINES)}")
    if engine == "torch":
        return None
    reason = native_unsupported_reason(model, precision)
    if reason is None:
        reason = _why_not_here()
        if reason is not None and engine == "auto":
            _say_once(reason)
    if reason is None:
        return NativeDecoder(model, "int8" if precision == "int8" else "float32")
    if engine == "native":
        raise ValueError(f"engine='native' cannot decode this: {reason}; use engine='torch', or 'auto'")
    return None
