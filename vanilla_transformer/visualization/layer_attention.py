# SPDX-License-Identifier: Apache-2.0
"""Which of a translation's attention is drawn: kind, layer, heads."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import numpy as np

Kind = Literal["encoder", "decoder", "cross"]
KINDS: tuple[Kind, ...] = get_args(Kind)
KIND_NAMES = {"encoder": "Encoder self-attention", "decoder": "Decoder self-attention", "cross": "Cross-attention"}
KEY_NAMES = {"encoder": "source token, attended to", "decoder": "target token read so far", "cross": "source token"}
MAX_TOKENS = 100  # tokens of either side that a picture can show


class Attention(Protocol):
    """What is drawn, as `vanilla_transformer.evaluation.attention_weights.AttentionWeights` has it."""

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
    """The heads of one layer, for one picture.

    Args:
        title: kind and layer.
        heads: their names.
        weights: `(heads, queries, keys)`.
        queries, keys: the tokens that attend, and those attended to.
        query_name, key_name: what they are.
        is_causal: query i sees the keys up to i only.
    """

    title: str
    heads: list[str]
    weights: np.ndarray
    queries: list[str]
    keys: list[str]
    query_name: str
    key_name: str
    is_causal: bool = False


def select_layers(
    attention: Attention,
    kinds: Sequence[Kind] = KINDS,
    layer: int | None = None,
    head: int | None = None,
    average: bool = False,
) -> list[LayerAttention]:
    """One block for each kind that is asked for; of all kinds, those that the model has.

    Args:
        layer: counted from 1; `None`: the last one of each kind.
        head: counted from 1, this one alone; `None`: all of the layer.
        average: their mean instead.

    Raises:
        ValueError: a kind that the model does not have, an unknown layer or head; more tokens than `MAX_TOKENS`.
    """
    check_lengths(attention)
    everything = {kind: getattr(attention, kind) for kind in KINDS}
    if len(kinds) == 1 and everything[kinds[0]] is None:
        has = ", ".join(kind for kind, weights in everything.items() if weights is not None)
        raise ValueError(f"this model has no {kinds[0]} self-attention (an RNN has none); it has: {has}")
    return [
        _block(attention, kind, everything[kind], layer, head, average)
        for kind in kinds
        if everything[kind] is not None
    ]


def check_lengths(attention: Attention) -> None:
    """Raise ValueError for more tokens than `MAX_TOKENS`."""
    for side, tokens in (("sentence", attention.source_tokens), ("translation", attention.target_tokens)):
        if len(tokens) > MAX_TOKENS:
            raise ValueError(
                f"the {side} has {len(tokens):,} tokens; a picture can show {MAX_TOKENS} at most: split it"
            )


def tokens_of(attention: Attention, kind: Kind) -> tuple[list[str], list[str]]:
    """The tokens that attend, and those attended to."""
    queries = attention.source_tokens if kind == "encoder" else attention.target_tokens
    return queries, attention.target_inputs if kind == "decoder" else attention.source_tokens


def _block(
    attention: Attention, kind: Kind, weights: np.ndarray, layer: int | None, head: int | None, average: bool
) -> LayerAttention:
    layers, heads = weights.shape[:2]
    layer = int(layers if layer is None else layer)
    _check(f"layer of the {KIND_NAMES[kind].lower()}", layer, layers)
    chosen = weights[layer - 1]  # (heads, queries, keys)
    names = [f"head {number}" for number in range(1, heads + 1)]
    if head is not None:
        _check(f"head of the {KIND_NAMES[kind].lower()}", head, heads)
        chosen, names = chosen[head - 1 : head], names[head - 1 : head]
    elif average:
        chosen, names = chosen.mean(axis=0, keepdims=True), [f"average of {heads} head{'s' * (heads > 1)}"]
    is_target = kind != "encoder"
    queries, keys = tokens_of(attention, kind)
    return LayerAttention(
        title=f"{KIND_NAMES[kind]}, layer {layer} of {layers}",
        heads=names,
        weights=chosen,
        queries=queries,
        keys=keys,
        query_name="produced token" if is_target else "source token, attending",
        key_name=KEY_NAMES[kind],
        is_causal=kind == "decoder",
    )


def _check(what: str, number: int, count: int) -> None:
    if not 1 <= number <= count:
        raise ValueError(f"{what}: {number} must be between 1 and {count}")
