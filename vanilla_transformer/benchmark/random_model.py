# SPDX-License-Identifier: Apache-2.0
"""A model of any size with the same random weights every time."""

import torch

from vanilla_transformer.configuration_vanilla_transformer import VanillaTransformerConfig
from vanilla_transformer.modeling_vanilla_transformer import VanillaTransformerForConditionalGeneration

SEED = 1


def random_model(config: VanillaTransformerConfig) -> VanillaTransformerForConditionalGeneration:
    """In evaluation mode, on the CPU."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        return VanillaTransformerForConditionalGeneration(config).eval()
