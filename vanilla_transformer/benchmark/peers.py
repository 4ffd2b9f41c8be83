# SPDX-License-Identifier: Apache-2.0
"""Our weights in other implementations: transformers' MarianMT and CTranslate2."""

from pathlib import Path
from typing import Any

from transformers import MarianConfig, MarianMTModel, PreTrainedModel

MARIAN_NAMES = {  # ours → Marian's
    "self_attention_norm": "self_attn_layer_norm",
    "cross_attention_norm": "encoder_attn_layer_norm",
    "feed_forward_norm": "final_layer_norm",
    "self_attention": "self_attn",
    "cross_attention": "encoder_attn",
    "feed_forward.linear_1": "fc1",
    "feed_forward.linear_2": "fc2",
}


def check_can_be_a_peer(config: Any) -> None:
    """MarianMT is post-norm, tied, with sinusoids; CTranslate2 is told so.

    Raises:
        ValueError: another architecture.
    """
    required = {"norm_position": "post", "position_embedding": "sinusoidal", "tie_word_embeddings": True}
    required |= {"activation_function": "relu", "d_k": config.d_model // config.num_heads}
    required |= {"d_v": config.d_model // config.num_heads, "final_layer_norm": False}
    for name, value in required.items():
        if getattr(config, name) != value:
            raise ValueError(f"{name}={getattr(config, name)!r}: the peers can only have {value!r}")


def as_marian(model: PreTrainedModel, longest: int) -> MarianMTModel:
    """MarianMT with the weights of `model`, which it computes the same function with.

    Args:
        longest: of sources and targets, in tokens; Marian's table of positions has an end.
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
    theirs: Any = marian.model
    for name, parameter in marian.named_parameters():  # biases of the attentions, which the paper does not have
        if name not in weights and name.endswith("_proj.bias"):
            weights[name] = parameter.detach().new_zeros(parameter.shape)
    import torch

    positions = model.model.decoder.input_embedding.positions(torch.arange(longest), longest)  # (longest, d_model)
    for stack in ("encoder", "decoder"):
        weights[f"model.{stack}.embed_positions.weight"] = positions
    missing, unexpected = marian.load_state_dict(weights, strict=False)
    assert not unexpected, unexpected
    assert set(missing) <= {"final_logits_bias", "model.shared.weight"}, missing
    marian.tie_weights()
    for norm in (one for one in theirs.modules() if type(one).__name__ == "LayerNorm"):
        norm.eps = config.layer_norm_eps  # Marian's is fixed at 1e-5
    return marian


def write_ctranslate2(model: PreTrainedModel, folder: Path, longest: int) -> None:
    """A CTranslate2 model with the weights of `model` in float32; tokens are their numbers, "0", "1" and so on.

    Args:
        folder: is created.
        longest: as for `as_marian`.
    """
    import torch
    from ctranslate2.specs import common_spec, transformer_spec

    config: Any = model.config
    check_can_be_a_peer(config)
    ours: Any = model.model
    spec = transformer_spec.TransformerSpec.from_config(
        (config.num_layers, config.num_decoder_layers),
        config.num_heads,
        pre_norm=False,
        activation=common_spec.Activation.RELU,
    )
    positions = ours.decoder.input_embedding.positions(torch.arange(longest), longest).numpy()  # (longest, d_model)
    for stack, own, table in (
        (spec.encoder, ours.encoder, spec.encoder.embeddings[0]),
        (spec.decoder, ours.decoder, spec.decoder.embeddings),
    ):
        stack.scale_embeddings = config.scale_embedding
        stack.position_encodings.encodings = positions
        table.weight = own.embed_tokens.weight.detach().numpy()
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
    import torch

    spec.weight = torch.cat([one.weight.detach() for one in linears]).numpy()
    if linears[0].bias is not None:
        spec.bias = torch.cat([one.bias.detach() for one in linears]).numpy()


def _norm(spec: Any, norm: Any) -> None:
    spec.gamma, spec.beta = norm.weight.detach().numpy(), norm.bias.detach().numpy()
