# SPDX-License-Identifier: Apache-2.0
"""Encoder-decoder Transformers of OpenNMT-py 2 and 3, and of eole, its successor."""

import json
from pathlib import Path
from typing import Any

import torch

from vanilla_transformer.importing.checkpoint_file import plain, read_checkpoint
from vanilla_transformer.importing.imported_model import ImportedModel
from vanilla_transformer.importing.names import DECODER, ENCODER, rename
from vanilla_transformer.importing.opennmt_names import ATTENTION, EOLE, OPENNMT
from vanilla_transformer.importing.opennmt_tokenizer import read_special_tokens, read_tokenizer, read_vocabularies

REQUIRED: dict[str, tuple[Any, ...]] = {  # settings that make another architecture, of either toolkit
    **dict.fromkeys(("encoder_type", "decoder_type"), ("transformer",)),
    **dict.fromkeys(("encoder_layer_style", "embedding_type"), ("standard",)),
    "model_task": ("seq2seq",),
    "layer_norm": ("standard", "standardFP32"),
    "self_attn_type": ("scaled-dot", "scaled-dot-flash"),
    "generator_function": ("softmax",),
    **dict.fromkeys(("max_relative_positions", "relative_positions_buckets", "num_experts", "sliding_window"), (0,)),
    **dict.fromkeys(("copy_attn", "parallel_residual", "ffn_layernorm", "normalize", "q_gating"), (False,)),
    **dict.fromkeys(("attn_scaling", "layer_types"), ()),
}
POSITIONS: dict[str, dict[str, Any]] = {
    "SinusoidalInterleaved": {},
    "SinusoidalConcat": {"sinusoid_layout": "concatenated", "sinusoid_exponent": "tensor2tensor"},
    "Learned": {"scale_embedding": False},
}
ACTIVATIONS = {
    **dict.fromkeys(("relu", "gelu", "quick_gelu", "silu")),  # OpenNMT-py's silu is gated: no row names its w_3
    "gelu-tanh": "gelu_pytorch_tanh",
}
GENERATION = {"num_beams": 5, "length_penalty": 1.0, "max_length": 250}  # of the toolkits' commands


def is_opennmt(source: Path) -> bool:
    """Whether it is a checkpoint with OpenNMT-py's entries."""
    try:
        return source.is_file() and {"vocab", "opt"} <= set(read_checkpoint(source))
    except (OSError, ValueError, TypeError):
        return False


def is_eole(source: Path) -> bool:
    """Whether it is a folder with eole's config.json."""
    try:
        return "model" in json.loads((source / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False


def read_opennmt(path: Path) -> ImportedModel:
    """A checkpoint of OpenNMT-py 2 or 3; version 3 may have its weights in a .safetensors beside it.

    Raises:
        FileNotFoundError: a file is missing, such as the subword model that the settings name.
        ValueError: a damaged file, another architecture.
    """
    content, origin = read_checkpoint(path), f"OpenNMT-py's checkpoint {path.name}"
    if not isinstance(content, dict) or not {"vocab", "opt"} <= content.keys():
        raise ValueError(f"{path} is no checkpoint of OpenNMT-py: it has no entries 'vocab' and 'opt'")
    if "model" in content:
        weights = content["model"] | {f"generator.{name}": row for name, row in (content["generator"] or {}).items()}
    else:
        weights = read_checkpoint(path.with_suffix(".safetensors"))
    opt, vocab = plain(content["opt"]), plain(content["vocab"])
    features = vocab.get("src_feats")
    if isinstance(vocab.get("src"), dict):  # version 2 has fields of torchtext
        features = len(vocab["src"]["fields"]) > 1
        vocab = {side: vocab[side]["fields"][0][1]["vocab"]["itos"] for side in ("src", "tgt")}
    if features:
        raise ValueError(f"{origin} has features beside the words, which a model of this package cannot have")
    position = opt.get("position_encoding_type", "SinusoidalInterleaved")
    model = opt | {
        "position_encoding_type": position if opt.get("position_encoding") else None,
        "mlp_activation_fn": opt.get("pos_ffn_activation_fn"),
        "heads_kv": opt.get("num_kv"),
        "hidden_size": opt.get("hidden_size") or opt.get("rnn_size"),
        "norm_eps": opt.get("norm_eps", 1e-6),
        "encoder": {"layers": opt.get("enc_layers")},
        "decoder": {"layers": opt.get("dec_layers")},
    }
    return _imported(origin, path.parent, rename(weights, OPENNMT, origin), model, vocab, opt)


def read_eole(folder: Path) -> ImportedModel:
    """The folder of a model, or of one of its checkpoints: config.json, vocab.json, model.00.safetensors.

    Raises:
        FileNotFoundError: a file is missing, such as the subword model that the settings name.
        ValueError: damaged files, another architecture.
    """
    origin = f"eole's model {folder.resolve().name}"
    config, vocab = (_read_json(folder / name) for name in ("config.json", "vocab.json"))
    files = sorted(folder.glob("model.*.safetensors"))
    if not files:
        raise FileNotFoundError(f"{folder} has no weights, model.00.safetensors")
    weights = {name: tensor for file in files for name, tensor in read_checkpoint(file).items()}
    for name in [name for name in weights if name.endswith(".layer_scalar")]:
        if (scale := weights.pop(name)).ne(1).any():
            raise ValueError(f"{origin} has {name}={scale.tolist()}; only 1 can be imported")
    model = dict(config.get("model") or {})
    if "norm_eps" not in model:  # a default, which nothing of the saved settings names, nor does the version
        encoder = model.get("encoder") or {}
        model["norm_eps"] = 1e-6 if "n_positions" not in encoder or "rope_config" in encoder else 1e-5  # since 0.2
    options = config | (config.get("training") or {})
    for transform in ("sentencepiece", "bpe"):
        options |= (config.get("transforms_configs") or {}).get(transform) or {}
    return _imported(origin, folder, rename(weights, EOLE, origin), model, vocab, options)


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON, or it is damaged: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no object but {type(content).__name__}")
    return content


def _imported(
    origin: str,
    folder: Path,
    weights: dict[str, torch.Tensor],
    model: dict[str, Any],
    vocab: dict[str, Any],
    options: dict[str, Any],
) -> ImportedModel:
    """Both toolkits' models.

    Args:
        folder: may hold subword models.
        model: eole's settings of the model; those of its parts under "encoder", "decoder" and "embeddings".
        vocab: tokens by id under "src" and "tgt", and names of special tokens.
        options: settings of training and of transforms.
    """
    parts = {name: model | (model.get(name) or {}) for name in ("encoder", "decoder", "embeddings")}
    settings = _settings(parts, origin)
    for name in [name for name in weights if name.endswith("input_embedding.positions.weight")]:
        weights[name] = weights[name][parts["embeddings"].get("position_shift") or 0 :]
    if model.get("share_embeddings") and f"{ENCODER}.weight" in weights:  # eole saves one of the two
        weights.setdefault(f"{DECODER}.weight", weights[f"{ENCODER}.weight"])
    source, target = read_vocabularies(vocab, origin)
    special = read_special_tokens(vocab, source, target, origin)
    start = vocab.get("decoder_start_token", special[1].bos)
    if start not in target:
        raise ValueError(f"{origin} begins its target with {start!r}, which is no token of its vocabulary")
    stated = {
        "vocab_size": len(source),
        "decoder_vocab_size": len(target),
        "d_model": parts["encoder"].get("hidden_size"),
        "d_ff": parts["encoder"].get("transformer_ff"),
        "num_layers": parts["encoder"].get("layers"),
        "num_decoder_layers": parts["decoder"].get("layers"),
    }
    rates = {name: options[name] for name in ("dropout", "attention_dropout") if options.get(name) is not None}
    rates = {name: rate[-1] if isinstance(rate, list) else rate for name, rate in rates.items()}
    tokenizer, note = read_tokenizer(folder, origin, options, (source, target), special)
    return ImportedModel(
        origin=origin,
        settings={
            **settings,
            **rates,
            "activation_dropout": rates.get("dropout", 0.0),
            **{f"{name}_token_id": target.index(getattr(special[1], name)) for name in ("pad", "eos")},
            "bos_token_id": None if special[1].bos is None else target.index(special[1].bos),
            "decoder_start_token_id": target.index(start),
        },
        stated={name: value for name, value in stated.items() if value != -1},  # eole's -1: not set
        weights=_with_biases(weights),
        generation=dict(GENERATION),
        tokenizer=tokenizer,
        source_vocabulary=source,
        target_vocabulary=target,
        unk=special[1].unk,
        note=note,
    )


def _settings(parts: dict[str, dict[str, Any]], origin: str) -> dict[str, Any]:
    """Fields of `VanillaTransformerConfig`."""
    both = {}
    for name in ("heads", "head_dim", "norm_eps", "mlp_activation_fn"):
        encoder, decoder = (parts[stack].get(name) for stack in ("encoder", "decoder"))
        if encoder != decoder:
            raise ValueError(
                f"{origin} has {name}={encoder} in its encoder and {decoder} in its decoder; both must be one"
            )
        both[name] = encoder
    heads, activation = both["heads"] or 8, both["mlp_activation_fn"] or "relu"
    position = parts["embeddings"].get("position_encoding_type", "SinusoidalInterleaved")
    for name, allowed in (REQUIRED | {"heads_kv": (0, heads)}).items():
        for settings in parts.values():
            if (value := settings.get(name)) is not None and value not in allowed:
                raise ValueError(f"{origin} has {name}={value!r}, which a model of this package cannot have")
    choices = (("position_encoding_type", position, POSITIONS), ("mlp_activation_fn", activation, ACTIVATIONS))
    for name, value, allowed in choices:
        if value not in allowed:
            raise ValueError(f"{origin} has {name}={value!r}; only {', '.join(allowed)} can be imported")
    return {
        "num_heads": heads,
        "d_k": both["head_dim"],
        "d_v": both["head_dim"],
        "norm_position": "pre",
        "layer_norm_eps": both["norm_eps"],
        "activation_function": ACTIVATIONS[activation] or activation,
        **POSITIONS[position],
    }


def _with_biases(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Zeros for biases that the source lacks: here all attentions have them or none, and all feed-forward networks."""
    filled, attention = dict(weights), tuple(ATTENTION.values())
    has_any = any(name.endswith(".bias") and name.split(".")[-2] in attention for name in weights)
    parts = ("linear_1", "linear_2", *(attention if has_any else ()))
    for name, matrix in weights.items():
        if name.endswith(".weight") and name.split(".")[-2] in parts:
            filled.setdefault(name.removesuffix("weight") + "bias", torch.zeros(len(matrix)))
    return filled
