# SPDX-License-Identifier: Apache-2.0
"""Which engine decodes a model: kernels compiled for this machine, or PyTorch's operations."""

from typing import Any, Literal, get_args

import torch
from transformers.utils.logging import get_logger

from vanilla_transformer.decoder import BuildsDecoder, Decoder, ModelDecoder
from vanilla_transformer.inference.native.compiler import library
from vanilla_transformer.inference.native.forks import compute_after_fork
from vanilla_transformer.inference.native.memory import release_file_pages
from vanilla_transformer.inference.native.rnn import NativeRecurrentDecoder
from vanilla_transformer.inference.native.transformer import NativeDecoder
from vanilla_transformer.modeling_rnn_seq2seq import RNNSeq2SeqForConditionalGeneration
from vanilla_transformer.modeling_vanilla_transformer import VanillaTransformerForConditionalGeneration
from vanilla_transformer.packed_linear import PRECISIONS, Precision
from vanilla_transformer.seq2seq_base import is_unmodified

Engine = Literal["auto", "native", "torch"]
ENGINES = get_args(Engine)

logger = get_logger(__name__)


def fast_decoder(model: Any, precision: Precision = "float32", engine: Engine = "auto") -> Decoder:
    """The fastest decoder for this model on this machine; its own forward pass where no other can decode it.

    Args:
        precision: "int8" is for models of this package; "bfloat16" needs a model in bfloat16, or the native engine.
        engine: as for `native_decoder`.

    Raises:
        ValueError: an unknown precision; bfloat16 for a model in another dtype; int8 for another model, or one whose
            decoder was modified; and as `native_decoder`.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision={precision!r} must be one of {', '.join(PRECISIONS)}")
    compute_after_fork()
    native = native_decoder(model, precision, engine)
    if native is not None:
        release_file_pages(model.parameters())  # the decoder has packed its own
        return native
    if precision == "bfloat16" and model.dtype != torch.bfloat16:
        raise ValueError(f"precision='bfloat16' needs a model in bfloat16, and this one is in {model.dtype}")
    builds_decoder = isinstance(model, BuildsDecoder)
    if precision == "int8" and not builds_decoder:
        raise ValueError(
            f"precision='int8' is for models of this package, not for model_type={model.config.model_type!r}: "
            "use bfloat16"
        )
    if builds_decoder and (precision == "int8" or model.can_build_decoder()):
        return model.build_decoder(precision)
    return ModelDecoder(model)


def native_decoder(model: Any, precision: Precision, engine: Engine) -> NativeDecoder | NativeRecurrentDecoder | None:
    """The native engine with this model's weights; `None`: PyTorch decodes. Arguments and errors as `is_native`."""
    if not is_native(model, engine):
        return None
    is_rnn = isinstance(model, RNNSeq2SeqForConditionalGeneration)
    return (NativeRecurrentDecoder if is_rnn else NativeDecoder)(model, precision)


def is_native(model: Any, engine: Engine) -> bool:
    """Whether the native engine decodes this model; otherwise PyTorch does.

    Args:
        engine: "auto": native where that is possible; "native": an error where it is not. Where "auto" falls back to
            PyTorch because of this machine, it logs a warning, once for each reason. It logs nothing where the
            caller's own choice (model, dtype, device) excludes the native engine.

    Raises:
        ValueError: an unknown engine; "native" where it is impossible.
    """
    if engine not in ENGINES:
        raise ValueError(f"engine={engine!r} must be one of {', '.join(ENGINES)}")
    if engine == "torch":
        return False
    reason = native_unsupported_reason(model)
    if reason is None:
        try:
            library()
        except ValueError as error:  # no compiler, say
            reason = str(error)
            if engine == "auto":
                logger.warning_once("the native engine is not available, and PyTorch decodes, more slowly: %s", reason)
        else:
            return True
    if engine == "native":
        raise ValueError(f"engine='native' cannot decode this: {reason}; use engine='torch', or 'auto'")
    return False


def native_unsupported_reason(model: Any) -> str | None:
    """Why the native engine cannot decode this model, on its device; `None`: it can, in every precision."""
    is_rnn = isinstance(model, RNNSeq2SeqForConditionalGeneration)
    if not is_rnn and not isinstance(model, VanillaTransformerForConditionalGeneration):
        return f"it decodes the models of this package, and this is a {type(model).__name__}"
    if model.device.type != "cpu":
        return f"it computes on a CPU, and the model is on {model.device}"
    if model.dtype != torch.float32:
        return f"it packs a model in float32, and this one is in {model.dtype}"
    if not is_rnn and model.config.activation_function != "relu":
        return f"it supports the paper's ReLU, not activation_function={model.config.activation_function!r}"
    if not (is_unmodified(model.get_encoder()) and model.can_build_decoder()):
        return "the model has adapters, hooks, shards or replaced modules"
    return None
