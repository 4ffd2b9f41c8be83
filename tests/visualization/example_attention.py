# SPDX-License-Identifier: Apache-2.0
"""Random attention weights for the tests of plots."""

import numpy as np

from vanilla_transformer.visualization.layer_attention import AttentionWeights


def example_attention(source: list[str], target: list[str], heads: int = 2, is_rnn: bool = False) -> AttentionWeights:
    """Two layers of an encoder, three of a decoder; an RNN has one layer and one head over the source."""

    def rows(layers: int, queries: int, keys: int) -> np.ndarray:
        return np.random.dirichlet(np.ones(keys), (layers, heads, queries))

    n, m = len(source), len(target)
    causal = np.tril(rows(3, m, m))
    return AttentionWeights(
        source,
        target,
        ["<s>", *target[:-1]],
        None if is_rnn else rows(2, n, n),
        None if is_rnn else causal / causal.sum(-1, keepdims=True),
        np.random.dirichlet(np.ones(n), (1, 1, m)) if is_rnn else rows(3, m, n),
    )
