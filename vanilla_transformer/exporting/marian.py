# SPDX-License-Identifier: Apache-2.0
"""Our weights as transformers' own MarianMTModel, which opens without our code in any version since 4.40."""

from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, MarianConfig, MarianMTModel, PreTrainedConfig

from vanilla_transformer.configuration_vanilla_transformer import VanillaTransformerConfig
from vanilla_transformer.exporting.plain_tokenizer import write_plain_tokenizers
from vanilla_transformer.exporting.requirements import check_requirements

SAME_FIELDS = ["vocab_size", "d_model", "scale_embedding", "activation_function"]
SAME_FIELDS += ["dropout", "attention_dropout", "activation_dropout"]
SAME_FIELDS += ["pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"]
MARIAN_NAMES = {  # our name of a module → Marian's
    "self_attention_norm": "self_attn_layer_norm",
    "cross_attention_norm": "encoder_attn_layer_norm",
    "feed_forward_norm": "final_layer_norm",
    "self_attention": "self_attn",
    "cross_attention": "encoder_attn",
    "feed_forward.linear_1": "fc1",
    "feed_forward.linear_2": "fc2",
}
# Field → the only value that MarianMT can have, and why.
REQUIRED: dict[str, tuple[Any, str]] = {
    "norm_position": ("post", "MarianMT normalises after each sub-layer"),
    "final_layer_norm": (False, "MarianMT's stacks end without a further LayerNorm"),
    "position_embedding": ("sinusoidal", "MarianMT computes its positions and loads none"),
    "sinusoid_exponent": ("paper", "MarianMT's sinusoids have the paper's frequencies"),
    "position_offset": (0, "MarianMT counts positions from 0"),
    "embedding_layer_norm": (False, "MarianMT has no LayerNorm after the embeddings"),
    "decoder_vocab_size": (None, "tokenizer.json holds one vocabulary"),
}
MARIAN_EPSILON = 1e-5  # MarianMT has no field for its LayerNorm's
# Modules that read the residual stream have d_model columns; all others write to it, and have d_model rows.
READERS = {"embed_tokens", "lm_head", "q_proj", "k_proj", "v_proj", "linear_1"}


def check_marian_supports(config: PreTrainedConfig, two_vocabularies: bool = False) -> None:
    """Raise ValueError, in one line with the reason, unless MarianMT can have this architecture.

    Args:
        two_vocabularies: allow them, where their tokenizers are opened one by one.
    """
    required = dict(REQUIRED)
    if two_vocabularies:
        del required["decoder_vocab_size"]
    if config.model_type == VanillaTransformerConfig.model_type:
        width = (config.d_model // config.num_heads, "MarianMT's heads divide d_model among themselves")
        required |= {"d_k": width, "d_v": width}
    check_requirements(config, "MarianMT", required)
    if config.d_model % config.num_heads:
        raise ValueError(f"num_heads={config.num_heads} does not divide d_model={config.d_model}, as MarianMT requires")
    if config.layer_norm_eps > MARIAN_EPSILON:
        raise ValueError(f"layer_norm_eps={config.layer_norm_eps}: MarianMT has {MARIAN_EPSILON}, ours may not be more")


def marian_config(config: Any, max_length: int, **options: Any) -> MarianConfig:
    """MarianMT of the size of a `VanillaTransformerConfig`; arguments and errors as for `as_marian`.

    Args:
        options: other fields.
    """
    check_marian_supports(config, two_vocabularies=True)
    return MarianConfig(
        **{name: getattr(config, name) for name in SAME_FIELDS},
        decoder_vocab_size=config.decoder_vocab_size or config.vocab_size,
        # With one of the two alone, versions of transformers tie other matrices: the folder then has a matrix twice.
        tie_word_embeddings=config.tie_word_embeddings and config.shares_embeddings,
        share_encoder_decoder_embeddings=config.tie_word_embeddings and config.shares_embeddings,
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
    """MarianMT with the weights of `model`: the same function up to rounding, in evaluation mode, float32, on the CPU.

    The epsilon of the first LayerNorm of each stack is Marian's. Behind sinusoids, whose mean square is 1/2, a
    difference of 9e-6 changes its output by about 1e-5 of itself.

    Args:
        model: a `VanillaTransformerForConditionalGeneration`.
        max_length: positions of sources and targets, in tokens.

    Raises:
        ValueError: MarianMT does not have this architecture.
    """
    config = model.config
    marian = MarianMTModel(marian_config(config, max_length)).eval()
    # Marian's attention has biases, the paper's has none.
    weights = {name: torch.zeros_like(bias) for name, bias in marian.named_parameters() if name.endswith("_proj.bias")}
    ours = {name: weight.float().cpu() for name, weight in model.state_dict().items()}
    if config.projection_bias:
        weights["final_logits_bias"] = ours.pop("lm_head.bias")[None]
    _fold_epsilon(ours, config)
    order = torch.arange(config.d_model)
    if config.sinusoid_layout == "interleaved":  # sines have even dimensions, cosines odd ones
        order = order.view(-1, 2).T.flatten()
    for name, weight in ours.items():
        module, kind = name.split(".")[-2:]
        if module not in READERS:
            weight = weight[order]
        elif kind == "weight":
            weight = weight[:, order]
        for our_name, marian_name in MARIAN_NAMES.items():
            name = name.replace(our_name, marian_name)
        weights[name] = weight
    missing, unexpected = marian.load_state_dict(weights, strict=False)
    assert not unexpected, unexpected
    computed = {f"model.{stack}.embed_positions.weight" for stack in ("encoder", "decoder")}
    assert set(missing) <= {"final_logits_bias", "model.shared.weight"} | computed, missing
    marian.tie_weights()
    return marian


def _fold_epsilon(weights: dict[str, torch.Tensor], config: Any) -> None:
    """Scale the residual stream by c, so that Marian's LayerNorm computes ours: c² var + 1e-5 = c² (var + epsilon).

    Every LayerNorm but the last of a stack multiplies its output by c. Modules that read the stream divide by c, and
    modules that write to it multiply by c. The first LayerNorm reads the embeddings and positions, which have no c.
    """
    factor = (MARIAN_EPSILON / config.layer_norm_eps) ** 0.5
    sublayers = {"encoder": ["self_attention", "feed_forward"]}
    sublayers["decoder"] = ["self_attention", "cross_attention", "feed_forward"]
    layers = {"encoder": config.num_layers, "decoder": config.num_decoder_layers}
    for stack, names in sublayers.items():
        places = [f"model.{stack}.layers.{i}.{name}" for i in range(layers[stack]) for name in names]
        scale = 1.0
        for place in places:
            for name in [name for name in weights if name.startswith(f"{place}.")]:
                module, kind = name.split(".")[-2:]
                reads_source = "cross_attention" in name and module in ("k_proj", "v_proj")  # whose scale is 1
                if module not in READERS:
                    weights[name] = weights[name] * scale
                elif kind == "weight" and not reads_source:
                    weights[name] = weights[name] / scale
            scale = 1.0 if place == places[-1] else factor
            for kind in ("weight", "bias"):
                weights[f"{place}_norm.{kind}"] = weights[f"{place}_norm.{kind}"] * scale


def marian_generation_config(own: GenerationConfig, config: MarianConfig) -> GenerationConfig:
    """The generation config `own` of our model for MarianMT: never padding, and as long as its positions reach.

    transformers' beam search divides by length^`length_penalty`. It ignores the paper's `alpha` and
    `max_tokens_beyond_source`, which `import` brings back.
    """
    settings = own.to_diff_dict()
    settings["max_length"] = config.max_position_embeddings
    settings["bad_words_ids"] = [*(own.bad_words_ids or []), [config.pad_token_id]]
    return GenerationConfig(**settings)


def write_marian(model: Any, tokenizer: Any, folder: Path, two_vocabularies: bool = False) -> MarianMTModel:
    """Write a folder that `AutoModelForSeq2SeqLM` and `AutoTokenizer` open without our code; return the MarianMT.

    Args:
        model: as for `as_marian`.
        folder: exists and is empty.
        two_vocabularies: as for `check_marian_supports`; the target's tokenizer is in `target_tokenizer/`.

    Raises:
        ValueError: MarianMT does not have this architecture.
    """
    check_marian_supports(model.config, two_vocabularies)
    marian: Any = as_marian(model, model.config.max_position_embeddings)
    marian.generation_config = marian_generation_config(model.generation_config, marian.config)
    marian.save_pretrained(folder)
    write_plain_tokenizers(tokenizer, folder)
    return marian
