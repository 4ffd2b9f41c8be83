# SPDX-License-Identifier: Apache-2.0
"""Sections 3.4 and 3.5 of the paper: scaled embeddings and positions."""

import math

import torch
from torch import nn

from .dropout import Dropout

MIN_TABLE_LENGTH = 1024  # positions of the first table of sinusoids


def embed_inputs(
    embed_tokens: nn.Embedding, input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor | None, prefix: str = ""
) -> torch.Tensor:
    """The embeddings of `input_ids`, or `inputs_embeds` themselves: `(batch, length, d_model)`, not yet scaled.

    Args:
        prefix: begins the arguments' names in error messages, such as "decoder_".

    Raises:
        ValueError: both or neither are given; a length of 0.
    """
    if (input_ids is None) == (inputs_embeds is None):
        given = "neither" if input_ids is None else "both"
        raise ValueError(f"give either {prefix}input_ids or {prefix}inputs_embeds; {given} was given")
    embedded = embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
    if embedded.shape[1] == 0:
        raise ValueError(f"{prefix}input_ids has no position at all: its shape is {tuple(embedded.shape[:2])}")
    return embedded


def infer_source_mask(input_ids: torch.Tensor | None, embedded: torch.Tensor, pad_token_id: int | None) -> torch.Tensor:
    """The encoder's attention mask where none is given: `(batch, source_length)`, 1 for real tokens.

    It comes from `pad_token_id`; every position is real where there is no such token or no `input_ids`.
    """
    if input_ids is not None and pad_token_id is not None:
        return input_ids.ne(pad_token_id).long()
    return torch.ones(embedded.shape[:2], dtype=torch.long, device=embedded.device)


def sinusoid(
    position_ids: torch.Tensor, d_model: int, layout: str = "interleaved", exponent: str = "paper"
) -> torch.Tensor:
    """Section 3.5: PE(pos, 2i) = sin(pos / 10000^(2i / d_model)), PE(pos, 2i + 1) = cos(the same angle).

    Args:
        position_ids: positions of any shape `(...)`, without a limit.
        d_model: width of the encoding, even.
        layout: "interleaved" as in the paper, or "concatenated": all sines, then all cosines.
        exponent: the power of 1 / 10000; "paper": 2i / d_model; "tensor2tensor": i / (d_model / 2 - 1), the last is 1.

    Returns:
        float32 of shape `(..., d_model)`.
    """
    # In float32 the angle of position 10,000 is already off by 6e-4, hence float64, which MPS lacks.
    dtype = torch.float32 if position_ids.device.type == "mps" else torch.float64
    width = d_model if exponent == "paper" else max(d_model - 2, 2)  # tensor2tensor, too, has 0 where d_model is 2
    exponents = torch.arange(0, d_model, 2, dtype=dtype, device=position_ids.device) / width  # 2i / d_model
    angles = position_ids[..., None] * torch.pow(10000.0, -exponents)  # (..., d_model / 2)
    if layout == "concatenated":
        return torch.cat([angles.sin(), angles.cos()], dim=-1).float()  # (..., d_model)
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2).float()  # (..., d_model)


class SinusoidalPositions(nn.Module):
    """The paper's positional encoding, from a table that grows with the longest sequence so far.

    It has no weight: nothing to save, to cast to bfloat16, to shard or to fill after loading on the meta device, and no
    maximum length. The table is no buffer for the same reasons; another device gets another table.
    """

    def __init__(self, d_model: int, layout: str, exponent: str = "paper", offset: int = 0):
        super().__init__()
        self.arguments = (d_model, layout, exponent)  # of `sinusoid`
        self.offset = offset  # the number of the first position
        self.table = torch.empty(0)

    def forward(self, position_ids: torch.Tensor, max_length: int) -> torch.Tensor:
        """`(batch or 1, length)` → `(batch or 1, length, d_model)`, float32, whatever `max_length` is."""
        # A graph would fix the table's length, and a fake tensor's table would outlive its mode.
        if torch.compiler.is_compiling() or type(position_ids) is not torch.Tensor:
            return sinusoid(position_ids + self.offset, *self.arguments)
        if self.table.device != position_ids.device or len(self.table) < max_length:
            # On the CPU, whose float64 every device may copy. Doubling its length makes a longer one rare.
            with torch.inference_mode(False):  # training may go on with the table of a validation
                positions = torch.arange(max(MIN_TABLE_LENGTH, 2 * max_length), device="cpu")
                self.table = sinusoid(positions + self.offset, *self.arguments).to(position_ids.device)
        return nn.functional.embedding(position_ids, self.table)


class LearnedPositions(nn.Embedding):
    """Learned positions (Table 3, row E): a matrix `(position_offset + max_position_embeddings, d_model)`."""

    def __init__(self, max_length: int, d_model: int, offset: int = 0):
        super().__init__(offset + max_length, d_model)
        self.offset = offset  # the row of the first position

    def forward(self, position_ids: torch.Tensor, max_length: int) -> torch.Tensor:  # pyright: ignore[reportIncompatibleMethodOverride] -- takes the arguments of SinusoidalPositions
        """`(batch or 1, length)` → `(batch or 1, length, d_model)`.

        Args:
            max_length: length of the longest sequence, padding included.

        Raises:
            ValueError: `max_length` exceeds `max_position_embeddings`.
        """
        limit = self.num_embeddings - self.offset
        if max_length > limit:
            raise ValueError(
                f"a sequence of {max_length} tokens is longer than the learned positions reach "
                f"(max_position_embeddings={limit}); shorten it, or train with "
                "position_embedding='sinusoidal', which has no limit"
            )
        return super().forward(position_ids + self.offset)


class InputEmbedding(nn.Module):
    """Embedding times sqrt(d_model), plus position, with dropout (sections 3.4, 3.5 and 5.4).

    The stack owns the token embedding (`embed_tokens`), as in all models of transformers.
    """

    def __init__(self, config):
        super().__init__()
        self.scale = math.sqrt(config.d_model) if config.scale_embedding else 1.0
        if config.position_embedding == "learned":
            self.positions = LearnedPositions(config.max_position_embeddings, config.d_model, config.position_offset)
        else:
            sinusoids = (config.sinusoid_layout, config.sinusoid_exponent, config.position_offset)
            self.positions = SinusoidalPositions(config.d_model, *sinusoids)
        # A departure: the paper has no LayerNorm here.
        self.norm = (
            nn.LayerNorm(config.d_model, config.layer_norm_eps) if config.embedding_layer_norm else nn.Identity()
        )
        self.dropout = Dropout(config.dropout)

    def forward(self, inputs_embeds: torch.Tensor, position_ids: torch.Tensor, max_length: int) -> torch.Tensor:
        """Embeddings `(batch, length, d_model)` and positions `(batch or 1, length)` → `(batch, length, d_model)`."""
        positions = self.positions(position_ids, max_length).to(inputs_embeds.dtype)
        embedded = self.norm(torch.add(positions, inputs_embeds, alpha=self.scale))
        return self.dropout(embedded.to(residual_dtype(embedded)))


def residual_dtype(hidden_states: torch.Tensor) -> torch.dtype:
    """The residual stream's precision: under autocast to bfloat16 the same, so that no sublayer converts it.

    float16, whose range a residual stream may leave, does not get there.
    """
    device = hidden_states.device.type
    under_bfloat16 = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.bfloat16
    return torch.bfloat16 if under_bfloat16 else hidden_states.dtype


def positions_of_real_tokens(attention_mask: torch.Tensor) -> torch.Tensor:
    """Positions that skip padding, so that padding on either side changes no output.

    `attention_mask` `(batch, length)`, 1 for real tokens → `(batch, length)`; padding gets any valid position.
    """
    return (attention_mask.long().cumsum(dim=-1) - 1).clamp(min=0)
