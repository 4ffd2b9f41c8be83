# SPDX-License-Identifier: Apache-2.0
"""State dicts of code that many have learnt from: torch.nn.Transformer, the Annotated Transformer, hkproj's.

A state dict does not state the number of heads, so the command line does. Each code has its own ids of special tokens.
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from vanilla_transformer.importing.checkpoint_file import read_checkpoint
from vanilla_transformer.importing.imported_model import ImportedModel
from vanilla_transformer.importing.names import (
    DECODER,
    ENCODER,
    HEAD,
    NORMS,
    PROJECTIONS,
    NameTable,
    fused_projections,
    rename,
)


def _table(rows: NameTable, attentions: Mapping[str, str], parts: tuple[str, ...]) -> NameTable:
    """The rows of both stacks: `{stack}` in a row, and the four matrices of each attention."""
    table: NameTable = {}
    for stack in ("encoder", "decoder"):
        layer = f"model.{stack}.layers.{{layer}}"
        for theirs, ours in rows.items():
            table[theirs.replace("{stack}", stack)] = ours.replace("{stack}", stack) if isinstance(ours, str) else ours
        for theirs, ours in attentions.items():
            for part, our_part in zip(parts, PROJECTIONS, strict=True):
                table[f"{stack}.layers.{{layer}}.{theirs}.{part}"] = f"{layer}.{ours}.{our_part}"
    return table


# "Language Translation with nn.Transformer and torchtext" (pytorch.org/tutorials) around torch.nn.Transformer.
TORCH: NameTable = {
    "src_tok_emb.embedding": ENCODER,
    "tgt_tok_emb.embedding": DECODER,
    "generator": HEAD,
    "positional_encoding.pos_embedding": None,
    **{f"transformer.{theirs}": ours for theirs, ours in fused_projections("self_attn", "multihead_attn").items()},
    **{
        f"transformer.{stack}.{theirs}": ours
        for stack, norms in NORMS.items()
        for theirs, ours in {
            "norm": f"model.{stack}.norm",
            "layers.{layer}.self_attn.out_proj": f"model.{stack}.layers.{{layer}}.self_attention.out_proj",
            "layers.{layer}.multihead_attn.out_proj": f"model.{stack}.layers.{{layer}}.cross_attention.out_proj",
            "layers.{layer}.linear1": f"model.{stack}.layers.{{layer}}.feed_forward.linear_1",
            "layers.{layer}.linear2": f"model.{stack}.layers.{{layer}}.feed_forward.linear_2",
            **{
                f"layers.{{layer}}.norm{number}": f"model.{stack}.layers.{{layer}}.{norm}"
                for number, norm in enumerate(norms, start=1)
            },
        }.items()
    },
}

# nlp.seas.harvard.edu/annotated-transformer
ANNOTATED: NameTable = {
    "src_embed.0.lut": ENCODER,
    "tgt_embed.0.lut": DECODER,
    "src_embed.1.pe": None,
    "tgt_embed.1.pe": None,
    "generator.proj": HEAD,
    **_table(
        {
            "{stack}.layers.{layer}.feed_forward.w_1": "model.{stack}.layers.{layer}.feed_forward.linear_1",
            "{stack}.layers.{layer}.feed_forward.w_2": "model.{stack}.layers.{layer}.feed_forward.linear_2",
            "{stack}.norm.a_2": "model.{stack}.norm.weight",
            "{stack}.norm.b_2": "model.{stack}.norm.bias",
        },
        {"self_attn": "self_attention", "src_attn": "cross_attention"},
        tuple(f"linears.{number}" for number in range(4)),
    ),
    **{
        f"{stack}.layers.{{layer}}.sublayer.{number}.norm.{theirs}": f"model.{stack}.layers.{{layer}}.{norm}.{ours}"
        for stack, norms in NORMS.items()
        for number, norm in enumerate(norms)
        for theirs, ours in (("a_2", "weight"), ("b_2", "bias"))
    },
}

# github.com/hkproj/pytorch-transformer
HKPROJ: NameTable = {
    "src_embed.embedding": ENCODER,
    "tgt_embed.embedding": DECODER,
    "src_pos.pe": None,
    "tgt_pos.pe": None,
    "projection_layer.proj": HEAD,
    **_table(
        {
            "{stack}.layers.{layer}.feed_forward_block.linear_1": "model.{stack}.layers.{layer}.feed_forward.linear_1",
            "{stack}.layers.{layer}.feed_forward_block.linear_2": "model.{stack}.layers.{layer}.feed_forward.linear_2",
            "{stack}.norm.alpha": "model.{stack}.norm.weight",
            "{stack}.norm": "model.{stack}.norm",
        },
        {"self_attention_block": "self_attention", "cross_attention_block": "cross_attention"},
        ("w_q", "w_k", "w_v", "w_o"),
    ),
    **{
        f"{stack}.layers.{{layer}}.residual_connections.{number}.norm{theirs}": (
            f"model.{stack}.layers.{{layer}}.{norm}{ours}"
        )
        for stack, norms in NORMS.items()
        for number, norm in enumerate(norms)
        for theirs, ours in ((".alpha", ".weight"), ("", ""))
    },
}
# Their LayerNorm divides by the unbiased standard deviation plus 1e-6; near 1 that is the root of the variance + 2e-6.
OWN_NORM_EPS = 2e-6
TUTORIAL_IDS = {"pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 3, "decoder_start_token_id": 2}
ANNOTATED_IDS = {"pad_token_id": 2, "bos_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}


def recognises(first: str) -> Callable[[Path], bool]:
    """Whether a file is a state dict with a parameter of this name."""

    def check(source: Path) -> bool:
        try:
            return source.is_file() and first in _state_dict(source)  # which reads it all
        except (OSError, ValueError):
            return False

    return check


def _state_dict(path: Path) -> dict[str, Any]:
    content = read_checkpoint(path)
    for name in ("model_state_dict", "model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
    if not isinstance(content, dict):
        raise ValueError(f"{path} is no state dict but {type(content).__name__}")
    return {name.removeprefix("module."): tensor for name, tensor in content.items()}


def read_torch(path: Path) -> ImportedModel:
    """The tutorial's `Seq2SeqTransformer` around torch.nn.Transformer: post-norm with a LayerNorm after each stack."""
    origin = f"torch.nn.Transformer's state dict {path.name}"
    settings = {"norm_position": "post", "layer_norm_eps": 1e-5} | TUTORIAL_IDS
    return ImportedModel(origin=origin, settings=settings, weights=rename(_state_dict(path), TORCH, origin))


def read_annotated(path: Path) -> ImportedModel:
    """`make_model` of the Annotated Transformer: pre-norm with a LayerNorm after each stack."""
    origin = f"the Annotated Transformer's state dict {path.name}"
    weights = _with_torch_norms(rename(_state_dict(path), ANNOTATED, origin))
    settings = {"norm_position": "pre", "layer_norm_eps": OWN_NORM_EPS} | ANNOTATED_IDS
    return ImportedModel(origin=origin, settings=settings, weights=weights)


def read_hkproj(path: Path) -> ImportedModel:
    """`build_transformer` of hkproj/pytorch-transformer: pre-norm with a LayerNorm after each stack."""
    origin = f"the state dict of hkproj/pytorch-transformer, {path.name}"
    weights = _with_torch_norms(rename(_state_dict(path), HKPROJ, origin))
    settings = {"norm_position": "pre", "layer_norm_eps": OWN_NORM_EPS} | TUTORIAL_IDS
    return ImportedModel(origin=origin, settings=settings, weights=weights)


def _with_torch_norms(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Scale weights by sqrt((d - 1) / d): they multiply a quotient by the unbiased deviation, torch's by the biased.

    The first versions of hkproj's code have one number instead of a vector.
    """
    width = weights[f"{ENCODER}.weight"].shape[1] if f"{ENCODER}.weight" in weights else 1
    for name in [name for name in weights if "norm." in name]:
        vector = weights[name].expand(width).clone() if len(weights[name]) == 1 else weights[name]
        weights[name] = vector * math.sqrt((width - 1) / width) if name.endswith(".weight") else vector
    return weights
