# SPDX-License-Identifier: Apache-2.0
"""A model of any size with the same random weights every time, and sources for it."""

import torch

from vanilla_transformer.configuration_vanilla_transformer import VanillaTransformerConfig
from vanilla_transformer.modeling_vanilla_transformer import VanillaTransformerForConditionalGeneration

SEED = 1
FIRST_TOKEN = 5  # after the special tokens


def random_model(config: VanillaTransformerConfig) -> VanillaTransformerForConditionalGeneration:
    """In evaluation mode, on the CPU."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        return VanillaTransformerForConditionalGeneration(config).eval()


def random_sources(vocab_size: int, sentences: int, length: int) -> list[list[int]]:
    """Sentences of one length, without special tokens."""
    generator = torch.Generator().manual_seed(SEED)
    return torch.randint(FIRST_TOKEN, vocab_size, (sentences, length), generator=generator).tolist()
