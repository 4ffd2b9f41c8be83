# SPDX-License-Identifier: Apache-2.0
"""Guided alignment (Garg et al. 2019): one head of the attention over the source learns given alignments."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from vanilla_transformer.inference.alignment import count_heads

HEAD = 0


def guided_layer(layers: int) -> int:
    """The last decoder layer but one, as in the paper; of one layer that."""
    return max(0, layers - 2)


def name_guided_head(model: PreTrainedModel) -> None:
    """Write into the generation config that the guided head aligns."""
    config: Any = model.generation_config
    config.alignment_heads, config.alignment_shift = [[guided_layer(count_heads(model)[0]), HEAD]], 0


def alignment_loss(
    cross_attentions: Sequence[torch.Tensor], links: torch.Tensor, num_items_in_batch: torch.Tensor
) -> torch.Tensor:
    """Cross-entropy of the head's weights against the links, summed and divided by the target tokens, in nats.

    The row that predicts a token is taught, which has not read the token. The paper's second pass, which sees the
    whole target, is left out.

    Args:
        cross_attentions: of each decoder layer `(batch, heads, target_length, source_length)`.
        links: `(batch, target_length, source_length)`, as of `Batch`.
        num_items_in_batch: target tokens of the whole update.
    """
    weights = cross_attentions[guided_layer(len(cross_attentions))][:, HEAD].float()
    # A weight that has become 0 would be infinitely wrong.
    log_weights = weights.clamp(min=torch.finfo(weights.dtype).tiny).log()
    return -(links * log_weights).sum() / num_items_in_batch.clamp(min=1)
