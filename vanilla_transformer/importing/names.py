# SPDX-License-Identifier: Apache-2.0
"""A table of names: patterns of a toolkit's parameters, and the names that they have here."""

import re
from collections.abc import Mapping

import torch

# A pattern of names → our name. `{layer}` and other fields stand for numbers. `None`: nothing that the model needs. A
# list: the rows of the parameter, in equal parts.
NameTable = dict[str, str | list[str] | None]

ENCODER, DECODER, HEAD = "model.encoder.embed_tokens", "model.decoder.embed_tokens", "lm_head"
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "out_proj")
NORMS = {  # in the order of the sub-layers
    "encoder": ("self_attention_norm", "feed_forward_norm"),
    "decoder": ("self_attention_norm", "cross_attention_norm", "feed_forward_norm"),
}


def fused_projections(self_attention: str, cross_attention: str) -> NameTable:
    """The rows for `in_proj_weight` and `in_proj_bias`, which torch's MultiheadAttention has, of both stacks.

    Args:
        self_attention, cross_attention: the toolkit's names of the modules in a layer.
    """
    return {
        f"{stack}.layers.{{layer}}.{theirs}.in_proj_{kind}": [
            f"model.{stack}.layers.{{layer}}.{ours}.{name}.{kind}" for name in PROJECTIONS[:3]
        ]
        for stack in ("encoder", "decoder")
        for theirs, ours in ((self_attention, "self_attention"), (cross_attention, "cross_attention"))
        for kind in ("weight", "bias")
    }


def rename(weights: Mapping[str, torch.Tensor], table: NameTable, origin: str) -> dict[str, torch.Tensor]:
    """The weights under our names, in float32.

    A row of the table names a parameter, or a module with its `weight` and `bias`.

    Args:
        origin: names the source, for errors.

    Raises:
        ValueError: no row names a parameter; two parameters get one name.
    """
    patterns = [(_compiled(pattern), ours) for pattern, ours in table.items()]
    renamed: dict[str, torch.Tensor] = {}
    for name, tensor in weights.items():
        if not isinstance(tensor, torch.Tensor):
            raise ValueError(f"{origin} has {name}, which is no tensor but {type(tensor).__name__}")
        found = next(((match, ours) for pattern, ours in patterns if (match := pattern.fullmatch(name))), None)
        if found is None:
            raise ValueError(
                f"{origin} has a parameter {name} {tuple(tensor.shape)}, which is no part of this architecture as far "
                "as it can be imported"
            )
        match, ours = found
        if ours is None:
            continue
        fields = match.groupdict()
        suffix = fields.pop("suffix") or ""
        names = [ours] if isinstance(ours, str) else ours
        if len(tensor) % len(names):
            raise ValueError(f"{origin}: the {len(tensor)} rows of {name} do not divide by {len(names)}")
        for our_name, part in zip(names, tensor.detach().float().chunk(len(names)), strict=True):
            full = our_name.format(**fields) + suffix
            if full in renamed:
                raise ValueError(f"{origin} has two parameters for {full}, {name} is the second")
            renamed[full] = part.contiguous()
    return renamed


def _compiled(pattern: str) -> re.Pattern[str]:
    text = re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>\\d+)", re.escape(pattern))
    return re.compile(rf"{text}(?P<suffix>\.weight|\.bias)?")


def fill_tied(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """All three embedding matrices, where the source stores one for two or three of them."""
    encoder, decoder, head = (f"{name}.weight" for name in (ENCODER, DECODER, HEAD))
    filled = dict(weights)
    for name, others in ((decoder, (head, encoder)), (encoder, (decoder,)), (head, (decoder,))):
        if name not in filled and (other := next((other for other in others if other in filled), None)):
            filled[name] = filled[other]
    return filled


def count_layers(weights: Mapping[str, torch.Tensor], stack: str) -> int:
    """The layers of `model.encoder` or `model.decoder` among our names."""
    found = {int(match[1]) for name in weights if (match := re.match(rf"model\.{stack}\.layers\.(\d+)\.", name))}
    return max(found, default=-1) + 1
