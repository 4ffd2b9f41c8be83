# SPDX-License-Identifier: Apache-2.0
"""Choose which attention of a translation is drawn: kind, layer, heads."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

Kind = Literal["encoder", "decoder", "cross"]
KINDS: tuple[Kind, ...] = get_args(Kind)
KIND_NAMES = {"encoder": "Encoder self-attention", "decoder": "Decoder self-attention", "cross": "Cross-attention"}
# Labels of the queries and of the keys.
SIDE_NAMES = {
    "encoder": ("source token, attending", "source token, attended to"),
    "decoder": ("produced token", "target token read so far"),
    "cross": ("produced token", "source token"),
}
MAX_TOKENS = 100  # of either side


@dataclass(frozen=True)
class AttentionWeights:
    """The attention in one translation (section 3.2.3 of the paper); every row of weights sums to 1.

    Position i of the decoder reads `target_inputs[i]` and produces `target_tokens[i]`: the inputs are the produced
    tokens shifted right.

    Args:
        source_tokens: with the EOS token.
        target_tokens, target_inputs: of the same length.
        encoder: self-attention, `(layers, heads, source_length, source_length)`; `None` for an RNN.
        decoder: masked self-attention, `(layers, heads, target_length, target_length)`; its columns are
            `target_inputs`. `None` for an RNN.
        cross: over the source, `(layers, heads, target_length, source_length)`. An RNN has one layer and one head.
    """

    source_tokens: list[str]
    target_tokens: list[str]
    target_inputs: list[str]
    encoder: np.ndarray | None
    decoder: np.ndarray | None
    cross: np.ndarray

    def queries_and_keys(self, kind: Kind) -> tuple[list[str], list[str]]:
        """The tokens that attend, and the tokens that they attend to."""
        queries = self.source_tokens if kind == "encoder" else self.target_tokens
        return queries, self.target_inputs if kind == "decoder" else self.source_tokens


@dataclass(frozen=True)
class LayerAttention:
    """The heads of one layer, for one picture."""

    kind: Kind
    title: str  # kind and layer
    heads: list[str]  # their names
    weights: np.ndarray  # (heads, queries, keys)
    queries: list[str]  # tokens
    keys: list[str]


def select_layers(
    attention: AttentionWeights,
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
    selected = []
    for kind in kinds:
        weights = getattr(attention, kind)  # (layers, heads, queries, keys)
        if weights is None:
            continue
        layers, heads = weights.shape[:2]
        number = layers if layer is None else layer
        for what, chosen, count in (("layer", number, layers), ("head", head, heads)):
            if chosen is not None and not 1 <= chosen <= count:
                raise ValueError(f"{what} of the {KIND_NAMES[kind].lower()}: {chosen} must be between 1 and {count}")
        weights = weights[number - 1]  # (heads, queries, keys)
        names = [f"head {index}" for index in range(1, heads + 1)]
        if head is not None:
            weights, names = weights[head - 1 : head], names[head - 1 : head]
        elif average:
            weights, names = weights.mean(axis=0, keepdims=True), [f"average of {heads} head{'s' * (heads > 1)}"]
        title = f"{KIND_NAMES[kind]}, layer {number} of {layers}"
        selected.append(LayerAttention(kind, title, names, weights, *attention.queries_and_keys(kind)))
    return selected
