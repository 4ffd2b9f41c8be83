# SPDX-License-Identifier: Apache-2.0
"""The Transformer against transformers' Marian, Bart and FSMT and torch's layers with the same weights."""

from functools import partial

import pytest
import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    FSMTConfig,
    FSMTForConditionalGeneration,
    MarianConfig,
    MarianMTModel,
)

from vanilla_transformer import VanillaTransformerConfig, VanillaTransformerForConditionalGeneration
from vanilla_transformer.modeling_vanilla_transformer import DecoderLayer, EncoderLayer

PAD, END = 0, 2


def tiny_config(**changes) -> VanillaTransformerConfig:
    values = {
        "vocab_size": 40,
        "d_model": 24,
        "d_ff": 48,
        "num_layers": 2,
        "num_decoder_layers": 3,
        "num_heads": 4,
        "attention_bias": True,
        "layer_norm_eps": 1e-5,
        "label_smoothing": 0.0,
        "decoder_start_token_id": PAD,
    }
    return VanillaTransformerConfig(**(values | changes))


def randomise(module: torch.nn.Module) -> None:
    """Biases and norms away from 0 and 1, so that a forgotten one shows."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))


NAMES = {  # ours → Marian's
    "self_attention_norm": "self_attn_layer_norm",
    "cross_attention_norm": "encoder_attn_layer_norm",
    "feed_forward_norm": "final_layer_norm",
    "self_attention": "self_attn",
    "cross_attention": "encoder_attn",
    "feed_forward.linear_1": "fc1",
    "feed_forward.linear_2": "fc2",
}


@pytest.fixture(params=[torch.float32, torch.float64], ids=["float32", "float64"])
def pair(request):
    """Our model and Marian with its weights."""
    model = VanillaTransformerForConditionalGeneration(tiny_config(sinusoid_layout="concatenated")).eval()
    randomise(model)
    marian = MarianMTModel(
        MarianConfig(
            vocab_size=40,
            d_model=24,
            encoder_layers=2,
            decoder_layers=3,
            encoder_ffn_dim=48,
            decoder_ffn_dim=48,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            max_position_embeddings=64,
            scale_embedding=True,
            activation_function="relu",
            pad_token_id=PAD,
            eos_token_id=END,
            decoder_start_token_id=PAD,
            forced_eos_token_id=None,
        )
    ).eval()
    renamed = {}
    for name, value in model.state_dict().items():
        for our_name, marian_name in NAMES.items():
            name = name.replace(our_name, marian_name)
        renamed[name] = value
    missing, unexpected = marian.load_state_dict(renamed, strict=False)
    assert not unexpected
    assert all("embed_positions" in name or name in ("final_logits_bias", "model.shared.weight") for name in missing)
    marian.tie_weights()
    assert torch.equal(marian.model.encoder.embed_tokens.weight, model.lm_head.weight)
    tolerance = 1e-5 if request.param == torch.float32 else 1e-6  # Marian's positions are float32
    return model.to(request.param), marian.to(request.param), tolerance


@pytest.fixture
def batch():
    torch.manual_seed(1)
    source = torch.randint(3, 40, (3, 9))
    source[1, 6:] = PAD
    labels = torch.randint(3, 40, (3, 7))
    labels[2, 5:] = -100
    return {"input_ids": source, "attention_mask": source.ne(PAD).long(), "labels": labels}


def test_logits_equal_marians(pair, batch):
    model, marian, tolerance = pair
    with torch.no_grad():
        difference = (model(**batch).logits - marian(**batch).logits).abs().max().item()
    print(f"max abs difference of logits from Marian: {difference:.1e}")
    assert difference < tolerance


def test_loss_equals_marians(pair, batch):
    model, marian, tolerance = pair
    with torch.no_grad():
        difference = abs(model(**batch).loss.item() - marian(**batch).loss.item())
    print(f"abs difference of loss from Marian: {difference:.1e}")
    assert difference < tolerance


def test_beam_search_equals_marians(pair, batch):
    model, marian, _ = pair
    options = {"num_beams": 3, "max_new_tokens": 12, "do_sample": False}
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    assert torch.equal(model.generate(**inputs, **options), marian.generate(**inputs, **options))


SIZES = {"d_model": 24, "encoder_layers": 2, "decoder_layers": 3, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48}
SIZES |= {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "max_position_embeddings": 64}
SIZES |= {"scale_embedding": True, "activation_function": "relu", "pad_token_id": 1, "eos_token_id": END}
SIZES |= {"decoder_start_token_id": END, "forced_eos_token_id": None}
OTHERS = {  # a model of transformers, its fields, and our departures from the paper
    "MarianMT": (
        partial(
            MarianMTModel,
            MarianConfig(vocab_size=40, decoder_vocab_size=45, share_encoder_decoder_embeddings=False, **SIZES),
        ),
        {"decoder_vocab_size": 45, "share_encoder_decoder_embeddings": False, "sinusoid_layout": "concatenated"}
        | {"projection_bias": True},
    ),
    "Bart": (
        partial(BartForConditionalGeneration, BartConfig(vocab_size=40, **SIZES)),
        {"embedding_layer_norm": True, "position_embedding": "learned", "position_offset": 2, "projection_bias": True}
        | {"max_position_embeddings": 64},
    ),
    "FSMT": (
        partial(FSMTForConditionalGeneration, FSMTConfig(src_vocab_size=40, tgt_vocab_size=45, **SIZES)),
        {"decoder_vocab_size": 45, "tie_word_embeddings": False, "sinusoid_layout": "concatenated"}
        | {"sinusoid_exponent": "tensor2tensor", "position_offset": 2},
    ),
}
OTHER_NAMES = NAMES | {"input_embedding.norm": "layernorm_embedding", "input_embedding.positions": "embed_positions"}


@pytest.fixture(params=OTHERS.values(), ids=OTHERS)
def departing_pair(request):
    """Our model with departures, and a model of transformers that has them, with its weights."""
    new_other, departures = request.param
    tokens = {"pad_token_id": 1, "eos_token_id": END, "decoder_start_token_id": END}
    model = VanillaTransformerForConditionalGeneration(tiny_config(**tokens, **departures)).eval()
    randomise(model)
    other, renamed = new_other().eval(), {}
    for name, value in model.state_dict().items():
        for ours, theirs in OTHER_NAMES.items():
            name = name.replace(ours, theirs)
        if name == "lm_head.bias":
            name, value = "final_logits_bias", value[None]
        if name == "lm_head.weight" and isinstance(other, FSMTForConditionalGeneration):
            name = "model.decoder.output_projection.weight"
        renamed[name] = value
    missing, unexpected = other.load_state_dict(renamed, strict=False)
    assert not unexpected
    assert {name for name in missing if "embed_positions" not in name} <= {"model.shared.weight"}
    return model, other


def test_departures_give_the_logits_of_models_that_have_them(departing_pair, batch):
    model, other = departing_pair
    inputs = {"input_ids": batch["input_ids"].masked_fill(batch["input_ids"] == PAD, 1)}
    inputs |= {"attention_mask": batch["attention_mask"], "decoder_input_ids": batch["labels"].abs() % 45}  # no padding
    with torch.no_grad():
        logits, expected = (each(**inputs, use_cache=False).logits for each in (model, other))
    print(f"max abs difference of logits from {type(other).__name__}: {(logits - expected).abs().max().item():.1e}")
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)


def test_departures_give_the_beam_search_of_models_that_have_them(departing_pair, batch):
    inputs = {"input_ids": batch["input_ids"].masked_fill(batch["input_ids"] == PAD, 1)}
    inputs |= {"attention_mask": batch["attention_mask"]}
    options = {"num_beams": 3, "max_new_tokens": 12, "do_sample": False, "early_stopping": False}
    found, expected = (each.generate(**inputs, **options) for each in departing_pair)
    assert torch.equal(found, expected)


TORCH_ATTENTIONS = {"self_attention": "self_attn", "cross_attention": "multihead_attn"}


def torch_layer(layer: EncoderLayer | DecoderLayer, config: VanillaTransformerConfig) -> torch.nn.Module:
    """torch's layer with our weights."""
    is_decoder = isinstance(layer, DecoderLayer)
    kind = torch.nn.TransformerDecoderLayer if is_decoder else torch.nn.TransformerEncoderLayer
    converted = kind(
        config.d_model,
        config.num_heads,
        config.d_ff,
        dropout=0.0,
        batch_first=True,
        norm_first=config.norm_position == "pre",
        layer_norm_eps=config.layer_norm_eps,
    ).double()
    attentions = ["self_attention", "cross_attention"] if is_decoder else ["self_attention"]
    with torch.no_grad():
        for number, name in enumerate(attentions, start=1):
            attention, torch_attention = getattr(layer, name), getattr(converted, TORCH_ATTENTIONS[name])
            projections = (attention.q_proj, attention.k_proj, attention.v_proj)
            torch_attention.in_proj_weight.copy_(torch.cat([projection.weight for projection in projections]))
            torch_attention.in_proj_bias.copy_(torch.cat([projection.bias for projection in projections]))
            torch_attention.out_proj.load_state_dict(attention.out_proj.state_dict())
            getattr(converted, f"norm{number}").load_state_dict(getattr(layer, f"{name}_norm").state_dict())
        getattr(converted, f"norm{len(attentions) + 1}").load_state_dict(layer.feed_forward_norm.state_dict())
    converted.linear1.load_state_dict(layer.feed_forward.linear_1.state_dict())
    converted.linear2.load_state_dict(layer.feed_forward.linear_2.state_dict())
    return converted.eval()


@pytest.mark.parametrize("norm_position", ["post", "pre"])
def test_encoder_layer_equals_torchs(norm_position):
    config = tiny_config(norm_position=norm_position)
    config._attn_implementation = "eager"
    layer = EncoderLayer(config).double().eval()
    randomise(layer)
    hidden = torch.randn(2, 5, 24, dtype=torch.float64)
    with torch.no_grad():
        difference = (layer(hidden) - torch_layer(layer, config)(hidden)).abs().max().item()
    print(f"max abs difference from torch.nn.TransformerEncoderLayer ({norm_position}-norm): {difference:.1e}")
    assert difference < 1e-6


@pytest.mark.parametrize("norm_position", ["post", "pre"])
def test_decoder_layer_equals_torchs(norm_position):
    config = tiny_config(norm_position=norm_position)
    config._attn_implementation = "eager"
    layer = DecoderLayer(config, layer_idx=0).double().eval()
    randomise(layer)
    hidden, memory = torch.randn(2, 5, 24, dtype=torch.float64), torch.randn(2, 6, 24, dtype=torch.float64)
    mask = torch.nn.Transformer.generate_square_subsequent_mask(5, dtype=torch.float64)
    with torch.no_grad():
        expected = torch_layer(layer, config)(hidden, memory, tgt_mask=mask)
        difference = (layer(hidden, mask[None, None], memory) - expected).abs().max().item()
    print(f"max abs difference from torch.nn.TransformerDecoderLayer ({norm_position}-norm): {difference:.1e}")
    assert difference < 1e-6
