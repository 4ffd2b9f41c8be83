# SPDX-License-Identifier: Apache-2.0
"""The exported MarianMT computes what our model does, for each architecture that it can have."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, GenerationConfig, MarianMTModel

from tests.conftest import write_reversals
from tests.exporting import versions
from tests.families import FAMILIES, PAD, tiny_batch
from vanilla_transformer import RNNSeq2SeqConfig, VanillaTransformerConfig
from vanilla_transformer.data.tokenizer import load_tokenizer
from vanilla_transformer.exporting.marian import as_marian, check_marian_supports, write_marian
from vanilla_transformer.inference.model_folder import load_model_folder

TRANSFORMER = FAMILIES[0]


def read_lines(folder: Path, pairs: int) -> list[str]:
    return Path(write_reversals(folder, "lines", pairs)["source"]).read_text(encoding="utf-8").splitlines()


@pytest.fixture
def marian_folder(model_folder, tmp_path) -> Path:
    folder = tmp_path / "marian"
    folder.mkdir()
    write_marian(load_model_folder(model_folder), load_tokenizer(model_folder), folder)
    return folder


@torch.no_grad()
def logits_difference(model: Any, folder: Path) -> float:
    as_marian(model, max_length=16).save_pretrained(folder)
    marian = AutoModelForSeq2SeqLM.from_pretrained(folder)
    batch = tiny_batch()
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    inputs["decoder_input_ids"] = batch["labels"].clamp(min=1)
    return (marian(**inputs).logits - model(**inputs).logits).abs().max().item()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"attention_bias": True},
        {"sinusoid_layout": "concatenated"},
        {"tie_word_embeddings": False},
        {"tie_word_embeddings": False, "share_encoder_decoder_embeddings": True},
        {"share_encoder_decoder_embeddings": False, "projection_bias": True},
        {"scale_embedding": False, "activation_function": "gelu"},
        {"d_ff": 16},  # as d_model: the shape of a matrix does not say which side is the residual stream
        {"num_layers": 1, "num_decoder_layers": 1},
        {"layer_norm_eps": 1e-5},
    ],
    ids=str,
)
def test_the_logits_are_ours(changes, tmp_path):
    assert logits_difference(TRANSFORMER.model(**changes), tmp_path) < 1e-4


def test_layer_norm_epsilon_is_ours_where_the_variance_is_as_small(tmp_path):
    """All LayerNorms but the first read a stream of variance 1e-6, where Marian's 1e-5 would be another function."""
    model = TRANSFORMER.model(layer_norm_eps=1e-7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "_norm." in name or "out_proj" in name or "linear_2" in name:
                parameter.mul_(1e-3)
        model.model.encoder.layers[-1].feed_forward_norm.weight.fill_(1.0)
        model.model.decoder.layers[-1].feed_forward_norm.weight.fill_(1.0)
    assert logits_difference(model, tmp_path) < 1e-4
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-5
    assert logits_difference(model, tmp_path) > 1e-2


def test_the_folder_opens_as_transformers_own_classes(model_folder, marian_folder):
    assert not list(marian_folder.rglob("*.py"))
    assert "auto_map" not in json.loads((marian_folder / "config.json").read_text(encoding="utf-8"))
    model, tokenizer = (
        AutoModelForSeq2SeqLM.from_pretrained(marian_folder),
        AutoTokenizer.from_pretrained(marian_folder),
    )
    assert type(model) is MarianMTModel
    assert type(tokenizer).__module__.startswith("transformers.")
    assert tokenizer("a b </s>")["input_ids"] == load_tokenizer(model_folder)("a b </s>")["input_ids"]


@pytest.mark.parametrize("options", [{"num_beams": 1, "length_penalty": None, "early_stopping": None}, {}], ids=str)
def test_generate_finds_our_tokens(model_folder, marian_folder, tmp_path, options):
    ours, tokenizer = load_model_folder(model_folder), AutoTokenizer.from_pretrained(marian_folder)
    batch = tokenizer(read_lines(tmp_path, 1000), return_tensors="pt", padding=True)
    found = AutoModelForSeq2SeqLM.from_pretrained(marian_folder).generate(**batch, max_new_tokens=8, **options)
    assert torch.equal(found, ours.generate(**batch, max_new_tokens=8, **options))
    assert len(found.unique(dim=0)) > 20


def test_generation_config_of_a_folder(model_folder, marian_folder):
    ours, theirs = (GenerationConfig.from_pretrained(folder).to_diff_dict() for folder in (model_folder, marian_folder))
    added = {"max_length": 1024, "bad_words_ids": [[PAD]]}
    assert theirs == ours | added


def test_padding_is_never_generated(model_folder, tmp_path):
    model, tokenizer = load_model_folder(model_folder), load_tokenizer(model_folder)
    model.get_input_embeddings().weight.data[PAD] = 1.0  # now the most likely token, see `model_folder`
    batch = tokenizer(["a b c"], return_tensors="pt")
    assert PAD in model.generate(**batch, max_new_tokens=4)
    write_marian(model, tokenizer, tmp_path)
    marian = AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    assert PAD not in marian.generate(**batch, max_new_tokens=4, eos_token_id=None)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (RNNSeq2SeqConfig(), "model_type='rnn_seq2seq': MarianMT is for Transformers, and this is none"),
        (
            VanillaTransformerConfig(norm_position="pre"),
            "norm_position='pre': MarianMT can have only 'post'; MarianMT norm",
        ),
        (VanillaTransformerConfig(final_layer_norm=True), "final_layer_norm=True: MarianMT can have only False"),
        (VanillaTransformerConfig(position_embedding="learned"), "position_embedding='learned': .* loads none"),
        (
            VanillaTransformerConfig(sinusoid_exponent="tensor2tensor"),
            "sinusoid_exponent='tensor2tensor': .* frequencies",
        ),
        (VanillaTransformerConfig(position_offset=2), "position_offset=2: MarianMT can have only 0"),
        (VanillaTransformerConfig(embedding_layer_norm=True), "embedding_layer_norm=True: .* after the embeddings"),
        (
            VanillaTransformerConfig(decoder_vocab_size=9, share_encoder_decoder_embeddings=False),
            "decoder_vocab_size=9: .* tokenizer.json holds one vocabulary",
        ),
        (VanillaTransformerConfig(d_k=16), "d_k=16: MarianMT can have only 64; MarianMT's heads divide d_model"),
        (VanillaTransformerConfig(d_v=16), "d_v=16: MarianMT can have only 64"),
        (VanillaTransformerConfig(num_heads=3, d_k=170, d_v=170), "num_heads=3 does not divide d_model=512"),
        (VanillaTransformerConfig(layer_norm_eps=1e-3), "layer_norm_eps=0.001: MarianMT has 1e-05"),
        (VanillaTransformerConfig(eos_token_id=[2, 3]), r"eos_token_id=\[2, 3\] must be one token"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_architecture_that_marian_lacks_is_an_error(config, message):
    with pytest.raises(ValueError, match=message):
        check_marian_supports(config)


@pytest.mark.slow
def test_other_versions_of_transformers(model_folder, tmp_path):
    found = versions.compare(model_folder, read_lines(tmp_path, 100), tmp_path / "installed")
    for version, row in found.items():
        assert version in (row["version"], versions.INSTALLED)
        assert (row["greedy"], row["beam"]) == (100, 100)
        assert row["logits"] < 1e-4
