# SPDX-License-Identifier: Apache-2.0
"""A tiny model that never ends a target by itself, and sources for it."""

from typing import Any

import pytest
import torch

from vanilla_transformer import VanillaTransformerConfig, VanillaTransformerForConditionalGeneration
from vanilla_transformer.benchmark.systems import Batch

VOCABULARY = 24


@pytest.fixture
def model() -> VanillaTransformerForConditionalGeneration:
    config = VanillaTransformerConfig(
        vocab_size=VOCABULARY, d_model=16, d_ff=32, num_layers=2, num_decoder_layers=1, num_heads=2
    )
    model = VanillaTransformerForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # biases and LayerNorms too, which begin as zeros and ones
            parameter.add_(torch.randn_like(parameter) * 0.3)
        # CTranslate2 forbids EOS where a length is given; the others treat it as any token. No system chooses it here.
        last: Any = model.model.decoder.layers[-1]
        last.feed_forward_norm.bias.fill_(1.0)
        model.lm_head.weight[model.config.eos_token_id] = -1.0
    return model


@pytest.fixture
def batch() -> Batch:
    """Sources of different lengths."""
    return Batch(
        [torch.randint(5, VOCABULARY, (length,)).tolist() for length in (7, 3, 5)],
        max_new_tokens=8,
        is_fixed_length=True,
    )
