# SPDX-License-Identifier: Apache-2.0
"""Sections 3.4 and 3.5 of the paper: scaled embeddings and positions."""

import math

import torch
from torch import nn

from .dropout import Dropout


def embedded_tokens(
    embed_tokens: nn.Embedding, input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor | None, prefix: str = ""
) -> torch.Tensor:
    """`(batch, length)` or `(batch, length, d_model)` → `(batch, length, d_model)`, before the scaling."""
    if (input_ids is None) == (inputs_embeds is None):
        given = "neither" if input_ids is None else "both"
        raise ValueError(f"give either {prefix}input_ids or {prefix}inputs_embeds; {given} was given")
    embedded = embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
    if embedded.shape[1] == 0:
        raise ValueError(f"{prefix}input_ids has no position at all: its shape is {tuple(embedded.shape[:2])}")
    return embedded


def sinusoid(position_ids: torch.Tensor, d_model: int, layout: str = "interleaved") -> torch.Tensor:
    """Section 3.5: PE(pos, 2i) = sin(pos / 10000^(2i / d_model)), PE(pos, 2i + 1) = cos(the same angle).

    Args:
        position_ids: positions of any shape `(...)`, without a limit.
        d_model: width of the encoding, even.
        layout: "interleaved" as in the paper, or "concatenated": all sines, then all cosines.

    Returns:
        float32 of shape `(..., d_model)`.
    """
    # Angles in float64: in float32 the angle of position 10,000 is already off by 6e-4. MPS has no float64.
    dtype = torch.float32 if position_ids.device.type == "mps" else torch.float64
    last = 8 / d_model - 4  # 10000^(-2i / d_model) is 10^(-8i / d_model), and the last i is d_model / 2 - 1
    frequencies = torch.logspace(0, last, d_model // 2, dtype=dtype, device=position_ids.device)  # (d_model / 2)
    angles = position_ids[..., None] * frequencies  # (..., d_model / 2)
    if layout == "concatenated":
        return torch.cat([angles.sin(), angles.cos()], dim=-1).float()  # (..., d_model)
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2).float()  # (..., d_model)


class SinusoidalPositions(nn.Module):
    """The paper's positional encoding, computed where it is needed.

    There is no table: nothing to save, to cast to bfloat16, to shard, to fill after loading on the meta device,
    and no longest position.
    """

    def __init__(self, d_model: int, layout: str):
        super().__init__()
        self.d_model = d_model
        self.layout = layout

    def forward(self, position_ids: torch.Tensor, longest: int) -> torch.Tensor:
        """`(batch or 1, length)` → `(batch or 1, length, d_model)`; `longest` is of no concern here."""
        return sinusoid(position_ids, self.d_model, self.layout)


class LearnedPositions(nn.Embedding):
    """Learned positions (Table 3, row E): a table of `(max_position_embeddings, d_model)`."""

    def forward(self, position_ids: torch.Tensor, longest: int) -> torch.Tensor:  # pyright: ignore[reportIncompatibleMethodOverride] -- the length is part of the contract with SinusoidalPositions
        """`(batch or 1, length)` → `(batch or 1, length, d_model)`.

        Args:
            longest: number of positions in use, which must not exceed the table.

        Raises:
            ValueError: when the table is too short; names both lengths.
        """
        if longest > self.num_embeddings:
            raise ValueError(
                f"a sequence of {longest} tokens is longer than the learned positions reach "
                f"(max_position_embeddings={self.num_embeddings}); shorten it, or train with "
                "position_embedding='sinusoidal', which has no limit"
            )
        return super().forward(position_ids)


class InputEmbedding(nn.Module):
    """Embedding times sqrt(d_model), plus position, with dropout (sections 3.4, 3.5 and 5.4).

    The token embedding itself belongs to the stack (`embed_tokens`), as everywhere in transformers.
    """

    def __init__(self, config):
        super().__init__()
        self.scale = math.sqrt(config.d_model) if config.scale_embedding else 1.0
        if config.position_embedding == "learned":
            self.positions = LearnedPositions(config.max_position_embeddings, config.d_model)
        else:
            self.positions = SinusoidalPositions(config.d_model, config.sinusoid_layout)
        self.dropout = Dropout(config.dropout)

    def forward(self, inputs_embeds: torch.Tensor, position_ids: torch.Tensor, longest: int) -> torch.Tensor:
        """Embeddings `(batch, length, d_model)` and positions `(batch or 1, length)` → `(batch, length, d_model)`."""
        positions = self.positions(position_ids, longest).to(inputs_embeds.dtype)
        embedded = torch.add(positions, inputs_embeds, alpha=self.scale)  # (batch, length, d_model)
        return self.dropout(embedded) if self.dropout.training else embedded


def positions_of_real_tokens(attention_mask: torch.Tensor) -> torch.Tensor:
    """Positions that count real tokens only, so that padding on either side changes nothing.

    `attention_mask` `(batch, length)`, 1 for real tokens → `(batch, length)`; padding gets any valid position.
    """
    return (attention_mask.long().cumsum(dim=-1) - 1).clamp(min=0)
