# SPDX-License-Identifier: Apache-2.0
"""The weights are those of `output_attentions`, whatever computes attention, and the tokens are readable."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.families import CROSS_ATTENTION, END, FAMILIES, START, Family
from vanilla_transformer import Translator
from vanilla_transformer.data.tokenizer import TokenizerConfig, train_tokenizer
from vanilla_transformer.evaluation.attention_weights import attention_weights, explain, readable_tokens

SYMBOLS = [f"w{i}" for i in range(27)]  # with the 4 special tokens, the vocabulary of a tiny model
SOURCE, TARGET = "w1 w2 w3 w4", [START, 7, 8, END]
TRANSFORMER, SUTSKEVER = FAMILIES[0], FAMILIES[4]
ATTENTIVE = [family for family in FAMILIES if CROSS_ATTENTION not in family.lacks]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([" ".join(SYMBOLS)], TokenizerConfig(kind="symbols"))


def folder_of(family: Family, tokenizer, path: Path) -> Path:
    model = family.model(pad_token_id=0, bos_token_id=START, eos_token_id=END, decoder_start_token_id=START)
    model.generation_config.update(num_beams=3, max_tokens_beyond_source=4)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.mark.parametrize("family", ATTENTIVE, ids=lambda family: family.name)
def test_weights_equal_output_attentions(family, tokenizer):
    model = family.model()
    backend = family.backends[-1] if family.backends[-1] != "flex_attention" else "sdpa"
    model.set_attn_implementation(backend)
    found = attention_weights(model, tokenizer, SOURCE, TARGET)
    assert model.config._attn_implementation == backend
    model.set_attn_implementation("eager")
    with torch.no_grad():
        output = model(
            **tokenizer(SOURCE, return_tensors="pt"),
            decoder_input_ids=torch.tensor([TARGET[:-1]]),
            output_attentions=True,
        )
    for kind in ("encoder", "decoder", "cross"):
        layers = output.get("cross_attentions" if kind == "cross" else f"{kind}_attentions")
        weights = getattr(found, kind)
        if layers is None:
            assert weights is None
        else:
            np.testing.assert_array_equal(weights, np.stack([layer[0].numpy() for layer in layers]))
    assert found.cross.shape[2:] == (3, 5)
    np.testing.assert_allclose(found.cross.sum(-1), 1, rtol=1e-5)


def test_target_inputs_are_target_tokens_shifted_right(tokenizer):
    found = attention_weights(TRANSFORMER.model(), tokenizer, SOURCE, TARGET)
    assert found.source_tokens == ["w1", "w2", "w3", "w4", "</s>"]
    assert found.target_inputs == ["<s>", *found.target_tokens[:-1]]
    assert found.target_tokens[-1] == "</s>"


def test_a_model_in_training_stays_so_and_its_dropout_is_off(tokenizer):
    model = TRANSFORMER.model(dropout=0.5).train()
    found = [attention_weights(model, tokenizer, SOURCE, TARGET).cross for _ in range(2)]
    assert model.training
    np.testing.assert_array_equal(*found)


def test_a_model_without_attention_says_so(tokenizer):
    with pytest.raises(ValueError, match="model_type='rnn_seq2seq' has no attention"):
        attention_weights(SUTSKEVER.model(), tokenizer, SOURCE, TARGET)


@pytest.mark.parametrize("family", [FAMILIES[0], FAMILIES[1]], ids=lambda family: family.name)
@pytest.mark.parametrize("num_beams", [1, 3])
def test_it_explains_the_translation_that_the_translator_makes(family, tokenizer, tmp_path, num_beams):
    translator = Translator.from_pretrained(folder_of(family, tokenizer, tmp_path), device="cpu")
    translation, found = explain(translator, SOURCE, num_beams=num_beams)
    [[expected]] = translator.n_best([SOURCE], 1, num_beams=num_beams)
    assert translation == expected.text
    assert [token for token in found.target_tokens if not token.startswith("<")] == translation.split()


def test_empty_and_too_long_sentences_are_refused(tokenizer, tmp_path):
    translator = Translator.from_pretrained(folder_of(TRANSFORMER, tokenizer, tmp_path), device="cpu")
    with pytest.raises(ValueError, match="the sentence is empty"):
        explain(translator, "  ")
    with pytest.raises(ValueError, match="2,001 tokens, more than the limit of 100"):
        explain(translator, "w1 " * 2000, max_length=100)


def test_bytes_of_one_character_share_it():
    """The alphabet of bytes alone: "中" and "é" are three and two tokens."""
    bytes_only = train_tokenizer([""], TokenizerConfig(kind="bpe", vocab_size=259))
    ids = bytes_only("é a\n中")["input_ids"]
    expected = ["é 1/2", "é 2/2", "␣", "a", "\\n", "中 1/3", "中 2/3", "中 3/3", "</s>"]
    assert readable_tokens(bytes_only, ids) == expected


def test_marks_of_word_starts_are_left_out():
    text = "a cat sat on a cat " * 3
    tokenizer = train_tokenizer([text], TokenizerConfig(kind="bpe", vocab_size=270))
    assert readable_tokens(tokenizer, tokenizer(" a cat")["input_ids"]) == ["a", "cat", "</s>"]
