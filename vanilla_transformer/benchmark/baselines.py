# SPDX-License-Identifier: Apache-2.0
"""Our weights in other implementations: transformers' MarianMT and CTranslate2."""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import MarianConfig, MarianMTModel, PreTrainedConfig, PreTrainedModel

from vanilla_transformer.configuration_vanilla_transformer import VanillaTransformerConfig

MARIAN_NAMES = {  # ours → Marian's
    "self_attention_norm": "self_attn_layer_norm",
    "cross_attention_norm": "encoder_attn_layer_norm",
    "feed_forward_norm": "final_layer_norm",
    "self_attention": "self_attn",
    "cross_attention": "encoder_attn",
    "feed_forward.linear_1": "fc1",
    "feed_forward.linear_2": "fc2",
}


def check_can_be_a_peer(config: PreTrainedConfig) -> None:
    """MarianMT is post-norm and tied, with sinusoids; CTranslate2's specification is made for the same.

    Raises:
        ValueError: another architecture; names the field, its value and what it has to be.
    """
    if config.model_type != VanillaTransformerConfig.model_type:
        raise ValueError(
            f"model_type={config.model_type!r}: the peers can only be {VanillaTransformerConfig.model_type!r}"
        )
    required: dict[str, Any] = {
        "norm_position": "post",
        "position_embedding": "sinusoidal",
        "tie_word_embeddings": True,
    }
    required |= {"activation_function": "relu", "d_k": config.d_model // config.num_heads}
    required |= {"d_v": config.d_model // config.num_heads, "final_layer_norm": False}
    for name, value in required.items():
        if getattr(config, name) != value:
            raise ValueError(f"{name}={getattr(config, name)!r}: the peers can only have {value!r}")


def as_marian(model: PreTrainedModel, longest: int) -> MarianMTModel:
    """MarianMT with the weights of `model`, which it computes the same function with; in evaluation mode, on the CPU.

    Args:
        model: a `VanillaTransformerForConditionalGeneration`.
        longest: of sources and targets, in tokens; Marian's table of positions has an end.

    Raises:
        ValueError: an architecture that MarianMT does not have.
    """
    config: Any = model.config
    check_can_be_a_peer(config)
    marian = MarianMTModel(
        MarianConfig(
            vocab_size=config.vocab_size,
            d_model=config.d_model,
            encoder_layers=config.num_layers,
            decoder_layers=config.num_decoder_layers,
            encoder_ffn_dim=config.d_ff,
            decoder_ffn_dim=config.d_ff,
            encoder_attention_heads=config.num_heads,
            decoder_attention_heads=config.num_heads,
            max_position_embeddings=longest,
            scale_embedding=config.scale_embedding,
            activation_function="relu",
            pad_token_id=config.pad_token_id,
            eos_token_id=config.eos_token_id,
            decoder_start_token_id=config.decoder_start_token_id,
            forced_eos_token_id=None,
        )
    ).eval()
    weights = {}
    for name, value in model.state_dict().items():
        for own, theirs in MARIAN_NAMES.items():
            name = name.replace(own, theirs)
        weights[name] = value
    for name, parameter in marian.named_parameters():  # biases of the attentions, which the paper does not have
        if name not in weights and name.endswith("_proj.bias"):
            weights[name] = parameter.detach().new_zeros(parameter.shape)
    for stack in ("encoder", "decoder"):
        weights[f"model.{stack}.embed_positions.weight"] = _positions(model, longest)
    missing, unexpected = marian.load_state_dict(weights, strict=False)
    assert not unexpected, unexpected
    assert set(missing) <= {"final_logits_bias", "model.shared.weight"}, missing
    marian.tie_weights()
    for module in marian.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = config.layer_norm_eps  # Marian has no field for it
    return marian


def write_ctranslate2(model: PreTrainedModel, folder: Path, longest: int) -> None:
    """A CTranslate2 model with the weights of `model` in float32; tokens are their numbers, "0", "1" and so on.

    Args:
        model: as for `as_marian`; on any device.
        folder: is created.
        longest: as for `as_marian`.

    Raises:
        ValueError: an architecture that was not provided for.
        FileExistsError: there is such a folder.
    """
    from ctranslate2.specs import common_spec, transformer_spec

    config: Any = model.config
    check_can_be_a_peer(config)
    ours: Any = model.model
    spec: Any = transformer_spec.TransformerSpec.from_config(
        (config.num_layers, config.num_decoder_layers),
        config.num_heads,
        pre_norm=False,
        activation=common_spec.Activation.RELU,
    )
    for stack, own, table in (
        (spec.encoder, ours.encoder, spec.encoder.embeddings[0]),
        (spec.decoder, ours.decoder, spec.decoder.embeddings),
    ):
        stack.scale_embeddings = config.scale_embedding
        stack.position_encodings.encodings = _array(_positions(model, longest))
        table.weight = _array(own.embed_tokens.weight)
        for theirs, layer in zip(stack.layer, own.layers, strict=True):
            _attention(theirs.self_attention, layer.self_attention, layer.self_attention_norm, splits_after=None)
            if own is ours.decoder:
                _attention(theirs.attention, layer.cross_attention, layer.cross_attention_norm, splits_after=1)
            _linear(theirs.ffn.linear_0, [layer.feed_forward.linear_1])
            _linear(theirs.ffn.linear_1, [layer.feed_forward.linear_2])
            _norm(theirs.ffn.layer_norm, layer.feed_forward_norm)
    _linear(spec.decoder.projection, [model.lm_head])
    tokens = [str(i) for i in range(config.vocab_size)]
    spec.register_source_vocabulary(tokens)
    spec.register_target_vocabulary(tokens)
    spec.config.bos_token = spec.config.decoder_start_token = str(config.decoder_start_token_id)
    spec.config.eos_token, spec.config.unk_token = str(config.eos_token_id), str(config.pad_token_id)
    spec.config.add_source_bos = spec.config.add_source_eos = False
    spec.config.layer_norm_epsilon = config.layer_norm_eps
    spec.validate()
    spec.optimize(quantization="float32")
    folder.mkdir(parents=True)
    spec.save(str(folder))


def _attention(spec: Any, attention: Any, norm: Any, splits_after: int | None) -> None:
    """Queries, keys and values as one matrix, or queries apart from keys and values."""
    projections = [attention.q_proj, attention.k_proj, attention.v_proj]
    if splits_after is None:
        _linear(spec.linear[0], projections)
    else:
        _linear(spec.linear[0], projections[:splits_after])
        _linear(spec.linear[1], projections[splits_after:])
    _linear(spec.linear[-1], [attention.out_proj])
    _norm(spec.layer_norm, norm)


def _linear(spec: Any, linears: list[Any]) -> None:
    """Several projections of one input as one."""
    spec.weight = _array(torch.cat([one.weight for one in linears]))
    if linears[0].bias is not None:
        spec.bias = _array(torch.cat([one.bias for one in linears]))


def _norm(spec: Any, norm: Any) -> None:
    spec.gamma, spec.beta = _array(norm.weight), _array(norm.bias)


def _array(tensor: torch.Tensor) -> Any:
    """A numpy array, on the CPU."""
    return tensor.detach().cpu().numpy()


def _positions(model: PreTrainedModel, longest: int) -> torch.Tensor:
    """The sinusoids, `(longest, d_model)`."""
    embedding: Any = model.get_decoder().input_embedding
    return embedding.positions(torch.arange(longest, device=model.device), longest)
