# SPDX-License-Identifier: Apache-2.0
"""Folders of models with random weights, whose every output word is hostile to a web page."""

from pathlib import Path

import pytest

from tests.families import END, START
from vanilla_transformer import (
    RNNSeq2SeqConfig,
    RNNSeq2SeqForConditionalGeneration,
    VanillaTransformerConfig,
    VanillaTransformerForConditionalGeneration,
)
from vanilla_transformer.data.tokenizer import TokenizerConfig, train_tokenizer
from vanilla_transformer.demo.shown_model import ShownModel

# HTML, JavaScript in a template literal, Handlebars, which Gradio's page evaluates, and markup of matplotlib.
HOSTILE = [
    "<img/src=x/onerror=window.owned=1>",
    "<script>window.owned=2</script>",
    "${window.owned=3}",
    "{{window.owned}}",
    "{{#if",
    "`+(window.owned=4)+`",
    "</p></div><h1>owned</h1>",
    "&lt;b&gt;",
    "$\\frac{1}{",
    "**bold**",
]
LETTERS = list("abcdefgh")


def _save(model, folder: Path) -> str:
    tokenizer = train_tokenizer([" ".join(HOSTILE + LETTERS)], TokenizerConfig(kind="symbols"))
    others = tokenizer.convert_tokens_to_ids([*LETTERS, "<pad>", "<s>", "<unk>"])  # so that every answer is hostile
    model.generation_config.update(num_beams=3, min_new_tokens=2, max_new_tokens=8, suppress_tokens=others)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


SIZES = {"vocab_size": 4 + len(HOSTILE + LETTERS), "dropout": 0.0}
TOKENS = {"pad_token_id": 0, "bos_token_id": START, "eos_token_id": END, "decoder_start_token_id": START}


@pytest.fixture
def transformer_folder(tmp_path: Path) -> str:
    config = VanillaTransformerConfig(d_model=16, d_ff=32, num_layers=2, num_heads=2, **SIZES, **TOKENS)
    return _save(VanillaTransformerForConditionalGeneration(config), tmp_path / "transformer")


@pytest.fixture
def rnn_folder(tmp_path: Path) -> str:
    config = RNNSeq2SeqConfig(embedding_size=8, hidden_size=16, num_layers=1, **SIZES, **TOKENS)
    return _save(RNNSeq2SeqForConditionalGeneration(config), tmp_path / "rnn")


@pytest.fixture
def mute_folder(tmp_path: Path) -> str:
    """An RNN without attention, as Sutskever et al.'s."""
    config = RNNSeq2SeqConfig(
        embedding_size=8, hidden_size=16, num_layers=1, attention="none", input_feeding="none", **SIZES, **TOKENS
    )
    return _save(RNNSeq2SeqForConditionalGeneration(config), tmp_path / "mute")


@pytest.fixture
def transformer(transformer_folder: str) -> ShownModel:
    return ShownModel(transformer_folder)


@pytest.fixture
def rnn(rnn_folder: str) -> ShownModel:
    return ShownModel(rnn_folder)
