# SPDX-License-Identifier: Apache-2.0
"""A Transformer whose alignment is known: one head attends to the source token that equals the token it reads."""

import random
from typing import Any

import torch

from vanilla_transformer import VanillaTransformerConfig, VanillaTransformerForConditionalGeneration
from vanilla_transformer.data.tokenizer import TokenizerConfig, train_tokenizer

LETTERS = "abcdefgh"
WIDTH = 16  # of a head, and more than the 12 tokens of the vocabulary


def aligning_model() -> tuple[Any, Any]:
    """Head 1 of decoder layer 1 aligns, with shift 1; the other heads attend to all tokens equally.

    Embeddings are orthogonal, and all sublayers add nothing, so that a state is its token's embedding, but for the
    position and LayerNorm.
    """
    tokenizer = train_tokenizer([" ".join(LETTERS)], TokenizerConfig(kind="symbols"))
    config = VanillaTransformerConfig(
        vocab_size=len(tokenizer), d_model=2 * WIDTH, d_ff=4, num_layers=1, num_decoder_layers=2, num_heads=2
    )
    model = VanillaTransformerForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if any(part in name for part in ("q_proj", "k_proj", "v_proj", "out_proj", "linear_")):
                weight.zero_()
        model.get_input_embeddings().weight.copy_(10 * torch.eye(len(tokenizer), 2 * WIDTH))
        attention: Any = model.model.decoder.layers[1].cross_attention
        for projection in (attention.q_proj, attention.k_proj):
            projection.weight[WIDTH:, :WIDTH] = 10 * torch.eye(WIDTH)
    return model, tokenizer


def reorderings(pairs: int) -> list[tuple[str, str, str]]:
    """Different letters, the same in another order, and their alignment."""
    generator = random.Random(1)
    rows = []
    for _ in range(pairs):
        source = generator.sample(LETTERS, generator.randint(2, len(LETTERS)))
        target = generator.sample(source, len(source))
        links = sorted((source.index(letter), position) for position, letter in enumerate(target))
        rows.append((" ".join(source), " ".join(target), " ".join(f"{s}-{t}" for s, t in links)))
    return rows
