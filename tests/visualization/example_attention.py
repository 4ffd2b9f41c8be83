# SPDX-License-Identifier: Apache-2.0
"""Attention of no model, for the tests of its pictures."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class ExampleAttention:
    source_tokens: list[str]
    target_tokens: list[str]
    target_inputs: list[str]
    encoder: np.ndarray | None
    decoder: np.ndarray | None
    cross: np.ndarray


def example_attention(source: list[str], target: list[str], heads: int = 2, is_rnn: bool = False) -> ExampleAttention:
    """Two layers of an encoder, three of a decoder; an RNN has one layer and one head over the source."""

    def rows(layers: int, queries: int, keys: int) -> np.ndarray:
        return np.random.dirichlet(np.ones(keys), (layers, heads, queries))

    n, m = len(source), len(target)
    causal = np.tril(rows(3, m, m))
    return ExampleAttention(
        source,
        target,
        ["<s>", *target[:-1]],
        None if is_rnn else rows(2, n, n),
        None if is_rnn else causal / causal.sum(-1, keepdims=True),
        np.random.dirichlet(np.ones(n), (1, 1, m)) if is_rnn else rows(3, m, n),
    )
