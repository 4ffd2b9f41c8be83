# SPDX-License-Identifier: Apache-2.0
"""Choose which attention of a translation is drawn: kind, layer, heads."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import numpy as np

Kind = Literal["encoder", "decoder", "cross"]
KINDS: tuple[Kind, ...] = get_args(Kind)
KIND_NAMES = {"encoder": "Encoder self-attention", "decoder": "Decoder self-attention", "cross": "Cross-attention"}
KEY_NAMES = {"encoder": "source token, attended to", "decoder": "target token read so far", "cross": "source token"}
MAX_TOKENS = 100  # of either side


class Attention(Protocol):
    """The attention weights of a translation: `vanilla_transformer.evaluation.attention_weights.AttentionWeights`."""

    @property
    def source_tokens(self) -> list[str]: ...
    @property
    def target_tokens(self) -> list[str]: ...
    @property
    def target_inputs(self) -> list[str]: ...
    @property
    def encoder(self) -> np.ndarray | None: ...
    @property
    def decoder(self) -> np.ndarray | None: ...
    @property
    def cross(self) -> np.ndarray: ...


@dataclass(frozen=True)
class LayerAttention:
    """The heads of one layer, for one picture."""

    title: str  # kind and layer
    heads: list[str]  # their names
    weights: np.ndarray  # (heads, queries, keys)
    queries: list[str]  # tokens
    keys: list[str]
    query_name: str  # label of the side
    key_name: str
    is_causal: bool = False  # query i sees the keys up to i only


def select_layers(
    attention: Attention,
    kinds: Sequence[Kind] = KINDS,
    layer: int | None = None,
    head: int | None = None,
    average: bool = False,
) -> list[LayerAttention]:
    """One layer of each kind. Where several kinds are named, a kind that the model lacks is left out.

    Args:
        layer: counted from 1; `None`: the last layer of each kind.
        head: the only head, counted from 1; `None`: all heads of the layer.
        average: the mean of all heads.

    Raises:
        ValueError: the only kind is one that the model lacks; an unknown layer or head; more tokens than `MAX_TOKENS`.
    """
    for side, tokens in (("sentence", attention.source_tokens), ("translation", attention.target_tokens)):
        if len(tokens) > MAX_TOKENS:
            count = f"{len(tokens):,} tokens"
            raise ValueError(f"the {side} has {count}; a picture can show {MAX_TOKENS} at most: split it")
    present = [kind for kind in KINDS if getattr(attention, kind) is not None]
    if len(kinds) == 1 and kinds[0] not in present:
        has = ", ".join(present)
        raise ValueError(f"this model has no {kinds[0]} self-attention (an RNN has none); it has: {has}")
    return [_select_layer(attention, kind, layer, head, average) for kind in kinds if kind in present]


def queries_and_keys(attention: Attention, kind: Kind) -> tuple[list[str], list[str]]:
    """The tokens that attend, and the tokens that they attend to."""
    queries = attention.source_tokens if kind == "encoder" else attention.target_tokens
    return queries, attention.target_inputs if kind == "decoder" else attention.source_tokens


def _select_layer(
    attention: Attention, kind: Kind, layer: int | None, head: int | None, average: bool
) -> LayerAttention:
    weights = getattr(attention, kind)  # (layers, heads, queries, keys)
    layers, heads = weights.shape[:2]
    layer = int(layers if layer is None else layer)
    for what, number, count in (("layer", layer, layers), ("head", head, heads)):
        if number is not None and not 1 <= number <= count:
            raise ValueError(f"{what} of the {KIND_NAMES[kind].lower()}: {number} must be between 1 and {count}")
    selected = weights[layer - 1]  # (heads, queries, keys)
    names = [f"head {number}" for number in range(1, heads + 1)]
    if head is not None:
        selected, names = selected[head - 1 : head], names[head - 1 : head]
    elif average:
        selected, names = selected.mean(axis=0, keepdims=True), [f"average of {heads} head{'s' * (heads > 1)}"]
    queries, keys = queries_and_keys(attention, kind)
    return LayerAttention(
        title=f"{KIND_NAMES[kind]}, layer {layer} of {layers}",
        heads=names,
        weights=selected,
        queries=queries,
        keys=keys,
        query_name="source token, attending" if kind == "encoder" else "produced token",
        key_name=KEY_NAMES[kind],
        is_causal=kind == "decoder",
    )
