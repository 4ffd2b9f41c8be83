# SPDX-License-Identifier: Apache-2.0
"""Our weights in other implementations: transformers' MarianMT and CTranslate2."""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import MarianConfig, MarianMTModel, PreTrainedConfig

from vanilla_transformer.configuration_vanilla_transformer import VanillaTransformerConfig

SAME_FIELDS = ["vocab_size", "d_model", "scale_embedding", "activation_function"]
SAME_FIELDS += ["pad_token_id", "eos_token_id", "decoder_start_token_id"]
MARIAN_NAMES = {  # our name of a module → Marian's
    "self_attention_norm": "self_attn_layer_norm",
    "cross_attention_norm": "encoder_attn_layer_norm",
    "feed_forward_norm": "final_layer_norm",
    "self_attention": "self_attn",
    "cross_attention": "encoder_attn",
    "feed_forward.linear_1": "fc1",
    "feed_forward.linear_2": "fc2",
}


def check_baseline_supports(config: PreTrainedConfig) -> None:
    """Raise ValueError unless MarianMT can have this architecture: post-norm, sinusoids, tied embeddings."""
    required: dict[str, Any] = {"model_type": VanillaTransformerConfig.model_type}
    if config.model_type == VanillaTransformerConfig.model_type:
        head_size = config.d_model // config.num_heads
        required |= {"norm_position": "post", "final_layer_norm": False, "position_embedding": "sinusoidal"}
        required |= {"tie_word_embeddings": True, "activation_function": "relu", "d_k": head_size, "d_v": head_size}
    for name, value in required.items():
        if getattr(config, name) != value:
            raise ValueError(f"{name}={getattr(config, name)!r}: the baselines support only {value!r}")


def marian_config(config: Any, max_length: int, **options: Any) -> MarianConfig:
    """MarianMT of the size of a `VanillaTransformerConfig`; arguments and errors as for `as_marian`.

    Args:
        options: other fields.
    """
    check_baseline_supports(config)
    return MarianConfig(
        **{name: getattr(config, name) for name in SAME_FIELDS},
        encoder_layers=config.num_layers,
        decoder_layers=config.num_decoder_layers,
        encoder_ffn_dim=config.d_ff,
        decoder_ffn_dim=config.d_ff,
        encoder_attention_heads=config.num_heads,
        decoder_attention_heads=config.num_heads,
        max_position_embeddings=max_length,
        forced_eos_token_id=None,
        **options,
    )


def as_marian(model: Any, max_length: int) -> MarianMTModel:
    """MarianMT with the weights of `model`: the same function, in evaluation mode, on the CPU.

    Args:
        model: a `VanillaTransformerForConditionalGeneration`.
        max_length: positions of sources and targets, in tokens; Marian stores as many sinusoids.

    Raises:
        ValueError: MarianMT does not have this architecture.
    """
    config = model.config
    marian = MarianMTModel(marian_config(config, max_length)).eval()
    # Marian's attention has biases, the paper's has none.
    weights = {name: torch.zeros_like(bias) for name, bias in marian.named_parameters() if name.endswith("_proj.bias")}
    for name, weight in model.state_dict().items():
        for our_name, marian_name in MARIAN_NAMES.items():
            name = name.replace(our_name, marian_name)
        weights[name] = weight
    sinusoids = model.get_decoder().input_embedding.positions(
        torch.arange(max_length, device=model.device), max_length
    )  # (max_length, d_model)
    for stack in ("encoder", "decoder"):
        weights[f"model.{stack}.embed_positions.weight"] = sinusoids
    missing, unexpected = marian.load_state_dict(weights, strict=False)
    assert not unexpected, unexpected
    assert set(missing) <= {"final_logits_bias", "model.shared.weight"}, missing
    marian.tie_weights()
    for module in marian.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = config.layer_norm_eps  # Marian has no field for it
    return marian


def write_ctranslate2(model: Any, folder: Path, max_length: int) -> None:
    """Write the weights of `model` as a CTranslate2 model in float32, whose tokens are the token ids: "0", "1", ….

    Args:
        model: as for `as_marian`; on any device.
        folder: is created.
        max_length: as for `as_marian`.

    Raises:
        ValueError: MarianMT does not have this architecture.
        FileExistsError: the folder exists.
    """
    from ctranslate2.converters.transformers import BartLoader

    config = model.config
    marian: Any = as_marian(model, max_length)
    marian.config.normalize_before = marian.config.normalize_embedding = False
    # `MarianMTLoader` starts from a zero embedding, as Marian's own models do; Bart's loader starts from a token.
    loader: Any = BartLoader()
    with torch.no_grad():
        for module in marian.modules():
            if isinstance(module, nn.Linear) and module.bias is not None and not module.bias.any():
                module.register_parameter("bias", None)  # adding zeros would slow CTranslate2
        spec = loader.get_model_spec(marian)
        loader.set_vocabulary(spec, [str(token) for token in range(config.vocab_size)])
        spec.config.bos_token = spec.config.decoder_start_token = str(config.decoder_start_token_id)
        spec.config.eos_token, spec.config.unk_token = str(config.eos_token_id), str(config.pad_token_id)
        spec.config.add_source_bos = spec.config.add_source_eos = False
        spec.config.layer_norm_epsilon = config.layer_norm_eps
        spec.validate()
        spec.optimize(quantization="float32")
    folder.mkdir(parents=True)
    spec.save(str(folder))
