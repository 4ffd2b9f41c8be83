# SPDX-License-Identifier: Apache-2.0
"""Our weights as a CTranslate2 model, written by CTranslate2's own description of a Transformer."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from ctranslate2.converters.transformers import _SUPPORTED_ACTIVATIONS as ACTIVATIONS
from ctranslate2.specs.transformer_spec import TransformerDecoderSpec, TransformerEncoderSpec, TransformerSpec
from torch import nn
from transformers import PreTrainedConfig

from vanilla_transformer.data.tokenizer_class import TARGET_TOKENIZER
from vanilla_transformer.exporting.plain_tokenizer import write_plain_tokenizers
from vanilla_transformer.exporting.requirements import Quantization, check_requirements


def check_ctranslate2_supports(config: PreTrainedConfig) -> None:
    """Raise ValueError, in one line with the reason, unless CTranslate2 can have this architecture."""
    check_requirements(config, "CTranslate2", {})
    if config.d_v != config.d_k:
        raise ValueError(f"d_v={config.d_v}: CTranslate2 can have only d_k={config.d_k}; its heads have one width")
    if config.activation_function not in ACTIVATIONS:
        known = ", ".join(sorted(ACTIVATIONS))
        raise ValueError(
            f"activation_function={config.activation_function!r} is not known to CTranslate2; it has {known}"
        )


def write_ctranslate2(
    model: Any,
    tokens: Sequence[str],
    folder: Path,
    quantization: Quantization = "float32",
    unk_token: str | None = None,
    max_length: int | None = None,
    target_tokens: Sequence[str] | None = None,
) -> None:
    """Write a folder that `ctranslate2.Translator` opens.

    Args:
        model: a `VanillaTransformerForConditionalGeneration`, on any device.
        tokens: the token of each id.
        folder: exists and is empty.
        unk_token: stands for tokens that are not among these; `None`: padding.
        max_length: positions of sources and targets, in tokens; `None`: `max_position_embeddings`.
        target_tokens: as `tokens`, of the target's vocabulary; `None`: it is the source's.

    Raises:
        ValueError: CTranslate2 does not have this architecture.
    """
    config = model.config
    check_ctranslate2_supports(config)
    # CTranslate2's `pre_norm` gives a stack its final LayerNorm; `_set_stack` sets that of the layers.
    options = {"pre_norm": config.final_layer_norm, "activation": ACTIVATIONS[config.activation_function]}
    options |= {"num_heads": config.num_heads, "head_dim": config.d_k}
    options["layernorm_embedding"] = config.embedding_layer_norm
    spec: Any = TransformerSpec(
        TransformerEncoderSpec(config.num_layers, **options),
        TransformerDecoderSpec(config.num_decoder_layers, **options),
    )
    for stack_spec, stack in ((spec.encoder, model.get_encoder()), (spec.decoder, model.get_decoder())):
        _set_stack(stack_spec, stack, max_length or config.max_position_embeddings)
    _set_linear(spec.decoder.projection, model.lm_head)
    targets = list(target_tokens or tokens)
    spec.register_source_vocabulary(list(tokens))
    spec.register_target_vocabulary(targets)
    spec.config.bos_token = spec.config.decoder_start_token = targets[config.decoder_start_token_id]
    spec.config.eos_token = targets[config.eos_token_id]
    spec.config.unk_token = unk_token or targets[config.pad_token_id]
    spec.config.add_source_bos = spec.config.add_source_eos = False  # the tokenizer adds them
    spec.config.layer_norm_epsilon = config.layer_norm_eps
    spec.validate()
    spec.optimize(quantization=quantization)
    spec.save(str(folder))


def write_ctranslate2_folder(model: Any, tokenizer: Any, folder: Path, quantization: Quantization) -> None:
    """`write_ctranslate2` with the tokenizer's tokens, and the tokenizer's own files beside them."""
    tokens = vocabulary_of(tokenizer, model.config.vocab_size)
    target = getattr(tokenizer, TARGET_TOKENIZER, None)
    target_tokens = None if target is None else vocabulary_of(target, model.lm_head.out_features)
    write_ctranslate2(model, tokens, folder, quantization, tokenizer.unk_token, target_tokens=target_tokens)
    write_plain_tokenizers(tokenizer, folder)


def vocabulary_of(tokenizer: Any, vocab_size: int) -> list[str]:
    """The token of each id; rows of the embeddings that have none get a name of their own."""
    names = {index: token for token, index in tokenizer.get_vocab().items()}
    return [names.get(index, f"<unused {index}>") for index in range(vocab_size)]


def _set_stack(spec: Any, stack: Any, max_length: int) -> None:
    config = stack.config
    spec.pre_norm = config.norm_position == "pre"
    spec.scale_embeddings = math.sqrt(config.d_model) if config.scale_embedding else 1.0
    embeddings = spec.embeddings[0] if isinstance(spec.embeddings, list) else spec.embeddings
    embeddings.weight = _tensor(stack.embed_tokens.weight)
    positions = torch.arange(max_length, device=stack.device)
    spec.position_encodings.encodings = _tensor(stack.input_embedding.positions(positions, max_length))
    if config.embedding_layer_norm:
        _set_layer_norm(spec.layernorm_embedding, stack.input_embedding.norm)
    if config.final_layer_norm:
        _set_layer_norm(spec.layer_norm, stack.norm)
    for layer_spec, layer in zip(spec.layer, stack.layers, strict=True):
        attention = layer.self_attention
        fused = (attention.q_proj, attention.k_proj, attention.v_proj), (attention.out_proj,)
        _set_attention(layer_spec.self_attention, layer.self_attention_norm, fused)
        if hasattr(layer, "cross_attention"):
            attention = layer.cross_attention
            fused = (attention.q_proj,), (attention.k_proj, attention.v_proj), (attention.out_proj,)
            _set_attention(layer_spec.attention, layer.cross_attention_norm, fused)
        _set_linear(layer_spec.ffn.linear_0, layer.feed_forward.linear_1)
        _set_linear(layer_spec.ffn.linear_1, layer.feed_forward.linear_2)
        _set_layer_norm(layer_spec.ffn.layer_norm, layer.feed_forward_norm)


def _set_attention(spec: Any, norm: nn.LayerNorm, fused: Sequence[Sequence[nn.Linear]]) -> None:
    for linear_spec, linears in zip(spec.linear, fused, strict=True):
        _set_linear(linear_spec, *linears)
    _set_layer_norm(spec.layer_norm, norm)


def _set_linear(spec: Any, *linears: nn.Linear) -> None:
    spec.weight = torch.cat([_tensor(linear.weight) for linear in linears])
    if linears[0].bias is not None:
        spec.bias = torch.cat([_tensor(linear.bias) for linear in linears])


def _set_layer_norm(spec: Any, norm: nn.LayerNorm) -> None:
    spec.gamma, spec.beta = _tensor(norm.weight), _tensor(norm.bias)


def _tensor(weight: torch.Tensor) -> torch.Tensor:
    return weight.detach().float().cpu()
