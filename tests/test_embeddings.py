# SPDX-License-Identifier: Apache-2.0
"""Sections 3.4 and 3.5: positions against the paper's formula, number by number."""

import math

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from vanilla_transformer import VanillaTransformerConfig, VanillaTransformerModel
from vanilla_transformer.embeddings import (
    InputEmbedding,
    LearnedPositions,
    SinusoidalPositions,
    positions_of_real_tokens,
    sinusoid,
)


def formula(position: int, dimension: int, d_model: int) -> float:
    """PE(pos, 2i) = sin(pos / 10000^(2i/d)), PE(pos, 2i+1) = cos(pos / 10000^(2i/d)), in Python's floats."""
    angle = position / 10000 ** (2 * (dimension // 2) / d_model)
    return math.sin(angle) if dimension % 2 == 0 else math.cos(angle)


@pytest.mark.parametrize("position", [0, 1, 7, 511, 5000, 100_000])
def test_sinusoid_is_the_papers_formula(position):
    encoding = sinusoid(torch.tensor([position]), d_model=12)[0]
    expected = [formula(position, dimension, 12) for dimension in range(12)]
    assert encoding.tolist() == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("position", [0, 7, 5000])
@pytest.mark.parametrize("d_model", [2, 12])
def test_the_exponent_of_tensor2tensor_reaches_from_0_to_1(position, d_model):
    encoding = sinusoid(torch.tensor(position), d_model, "concatenated", "tensor2tensor")
    angles = [position * 10000 ** (-i / max(d_model // 2 - 1, 1)) for i in range(d_model // 2)]  # get_timing_signal_1d
    expected = [*map(math.sin, angles), *map(math.cos, angles)]
    assert encoding.tolist() == pytest.approx(expected, abs=1e-7)


def test_concatenated_layout_is_a_permutation_of_the_interleaved_one():
    interleaved = sinusoid(torch.arange(9), d_model=8, layout="interleaved")
    concatenated = sinusoid(torch.arange(9), d_model=8, layout="concatenated")
    assert torch.equal(concatenated, torch.cat([interleaved[:, 0::2], interleaved[:, 1::2]], dim=-1))


def test_positions_count_real_tokens_on_either_side():
    mask = torch.tensor([[1, 1, 1, 0], [0, 1, 1, 1]])
    positions = positions_of_real_tokens(mask)
    assert positions[0, :3].tolist() == [0, 1, 2]
    assert positions[1, 1:].tolist() == [0, 1, 2]


def test_embedding_is_scaled_by_the_root_of_d_model():
    config = VanillaTransformerConfig(vocab_size=9, d_model=16, num_heads=2)
    embedded = torch.randn(2, 3, 16)
    output = InputEmbedding(config).eval()(embedded, torch.arange(3)[None], max_length=3)
    assert torch.allclose(output, embedded * 4 + sinusoid(torch.arange(3), 16), atol=1e-6)


def test_sinusoidal_positions_have_no_maximum_length():
    config = VanillaTransformerConfig(
        vocab_size=9, d_model=8, d_ff=8, num_layers=1, num_heads=2, max_position_embeddings=4
    )
    model = VanillaTransformerModel(config).eval()
    with torch.no_grad():
        output = model.encoder(torch.randint(3, 9, (1, 3000)))
    assert output.last_hidden_state.isfinite().all()


@pytest.mark.parametrize("offset", [0, 2])
def test_a_sequence_longer_than_learned_positions_is_an_error(offset):
    positions = LearnedPositions(10, 4, offset)
    assert torch.equal(positions(torch.arange(10)[None], max_length=10)[0], positions.weight[offset:])
    with pytest.raises(ValueError, match="11 tokens.*max_position_embeddings=10"):
        positions(torch.arange(11)[None], max_length=11)


def test_a_cached_target_longer_than_learned_positions_is_an_error():
    config = VanillaTransformerConfig(
        vocab_size=9,
        d_model=8,
        d_ff=8,
        num_layers=1,
        num_heads=2,
        position_embedding="learned",
        max_position_embeddings=6,
    )
    model = VanillaTransformerModel(config).eval()
    cache = model(torch.tensor([[4, 5]]), decoder_input_ids=torch.full((1, 6), 4), use_cache=True).cache
    with pytest.raises(ValueError, match="7 tokens.*max_position_embeddings=6"):
        model(torch.tensor([[4, 5]]), decoder_input_ids=torch.tensor([[4]]), cache=cache)


@pytest.mark.parametrize("form", [("interleaved", "paper"), ("concatenated", "tensor2tensor")])
def test_the_table_of_sinusoids_grows_with_the_sequence(form):
    positions = SinusoidalPositions(8, *form, offset=2)
    for length in (5, 3000, 4):
        position_ids = torch.arange(length)[None].flip(1)
        assert torch.equal(positions(position_ids, length), sinusoid(position_ids + 2, 8, *form))


def test_the_table_of_sinusoids_follows_the_device():
    positions = SinusoidalPositions(8, "interleaved")
    positions(torch.arange(3), 3)
    assert positions(torch.arange(3, device="meta"), 3).device.type == "meta"
    assert torch.equal(positions(torch.arange(3), 3), sinusoid(torch.arange(3), 8))


def test_a_fake_tensor_leaves_no_table_behind():
    positions = SinusoidalPositions(8, "interleaved")
    with FakeTensorMode():
        assert positions(torch.arange(3), 3).shape == (3, 8)
    assert torch.equal(positions(torch.arange(3), 3), sinusoid(torch.arange(3), 8))


def test_training_goes_on_with_the_table_of_inference_mode():
    config = VanillaTransformerConfig(vocab_size=9, d_model=16, num_heads=2)
    embedding, embedded = InputEmbedding(config), torch.randn(2, 3, 16, requires_grad=True)
    with torch.inference_mode():
        embedding(embedded, torch.arange(3)[None], max_length=3)
    embedding(embedded, torch.arange(3)[None], max_length=3).sum().backward()
    assert embedded.grad is not None


@pytest.mark.parametrize(("dtype", "expected"), [(torch.bfloat16, torch.bfloat16), (torch.float16, torch.float32)])
def test_the_residual_stream_is_bfloat16_under_its_autocast(dtype, expected):
    config = VanillaTransformerConfig(vocab_size=9, d_model=16, d_ff=8, num_layers=1, num_heads=2)
    layer = VanillaTransformerModel(config).encoder.layers[0]
    seen = []
    layer.register_forward_hook(lambda module, args, output: seen.extend([args[0].dtype, output.dtype]))
    encoder = VanillaTransformerModel(config).encoder
    encoder.layers[0] = layer
    with torch.autocast("cpu", dtype):
        encoder(torch.randint(3, 9, (2, 5)))
    assert seen == [expected, expected]
