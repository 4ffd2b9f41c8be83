# SPDX-License-Identifier: Apache-2.0
"""Exported folders, the Transformer's and every RNN's, translate in onnxruntime alone as the models do."""

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GenerationConfig

from tests.conftest import write_reversals
from tests.families import END, FAMILIES, PAD, START, Family
from vanilla_transformer.cli import main
from vanilla_transformer.data.tokenizer import TokenizerConfig, load_tokenizer, train_tokenizer
from vanilla_transformer.data.tokenizer_class import target_tokenizer, with_target
from vanilla_transformer.exporting.onnx import ENCODER, FIRST_STEP, quantize_graphs, write_onnx
from vanilla_transformer.exporting.onnx_translator import OnnxTranslator
from vanilla_transformer.hub.exported_folders import opening_code
from vanilla_transformer.inference.model_folder import load_model_folder
from vanilla_transformer.inference.native.engine import fast_decoder
from vanilla_transformer.inference.translator import Translator

RECURRENT = [family for family in FAMILIES if family.name.startswith("rnn")]
LETTERS = "abcdefghijklmnopqrstuvwxyz0"  # as many tokens as the families have, with the special ones


def letters(count: int) -> list[str]:
    draws = random.Random(0)
    return [" ".join(draws.choices(LETTERS, k=draws.randint(1, 9))) for _ in range(count)]


def tokenizer_of(model: Any, lines: list[str]) -> Any:
    """Two, if the model has two vocabularies."""
    tokenizer = train_tokenizer(lines, TokenizerConfig(kind="symbols"))
    if model.config.decoder_vocab_size is not None:
        target = [" ".join(LETTERS.upper() + "123456")]
        tokenizer = with_target(tokenizer, train_tokenizer(target, TokenizerConfig(kind="symbols")))
        assert len(target_tokenizer(tokenizer)) == model.config.decoder_vocab_size
    return tokenizer


def varied_model(family: Family, **changes: Any) -> Any:
    """Its weights are large enough for translations that depend on the source."""
    model = family.model(**changes)
    draws = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.7 * torch.randn(parameter.shape, generator=draws))
    special = {"pad_token_id": PAD, "bos_token_id": START, "eos_token_id": END, "decoder_start_token_id": START}
    model.generation_config = GenerationConfig(max_tokens_beyond_source=5, suppress_tokens=[PAD, START, 3], **special)
    return model


@pytest.mark.slow
@pytest.mark.parametrize("family", RECURRENT, ids=lambda family: family.name)
def test_an_rnn_gives_identical_greedy_translations(family, tmp_path):
    model, lines = varied_model(family), [*letters(1000), "", "  "]
    tokenizer = tokenizer_of(model, lines)
    expected = Translator(model, tokenizer, fast_decoder(model, engine="torch")).translate(lines, num_beams=1)
    assert len(set(expected)) > 500  # they depend on the source
    source, folder = tmp_path / "model", tmp_path / "onnx"
    model.save_pretrained(source)
    tokenizer.save_pretrained(source)
    assert main(["export", str(source), str(folder), "--to", "onnx"]) == 0
    assert OnnxTranslator(folder, threads=1).translate(lines) == expected
    sources = tokenizer(lines[:100])["input_ids"]
    exact = first_logits(folder, sources)
    quantize_graphs(folder, [ENCODER, FIRST_STEP])
    assert b"MatMulInteger" in (folder / FIRST_STEP).read_bytes()
    assert 0 < np.abs(first_logits(folder, sources) - exact).mean() < 0.1 * exact.std()


@pytest.mark.slow
def test_a_transformer_with_two_vocabularies_gives_identical_greedy_translations(tmp_path):
    model = varied_model(FAMILIES[0], decoder_vocab_size=37, share_encoder_decoder_embeddings=False)
    lines = letters(100)
    tokenizer = tokenizer_of(model, [*lines, " ".join(LETTERS)])
    expected = Translator(model, tokenizer, fast_decoder(model, engine="torch")).translate(lines, num_beams=1)
    assert len(set(expected)) > 10
    write_onnx(model, tokenizer, tmp_path)
    assert OnnxTranslator(tmp_path, threads=1).translate(lines) == expected
    for repo_id, place in ((None, "target_tokenizer"), ("ann/model", "onnx/target_tokenizer")):
        assert f'AutoTokenizer.from_pretrained(name, subfolder="{place}")' in opening_code(
            "onnx", tmp_path, "[]", repo_id
        )


def first_logits(folder: Path, sources: list[list[int]]) -> np.ndarray:
    """The logits of each target's first token, one source at a time."""
    translator, rows = OnnxTranslator(folder, threads=1), []
    for source in sources:
        mask = np.ones((1, len(source)), dtype=np.int64)
        values = {"input_ids": np.array([source]), "attention_mask": mask, "encoder_attention_mask": mask}
        translator._run(ENCODER, values)
        values["input_ids"] = np.array([[START]])
        translator._run(FIRST_STEP, values)
        rows.append(values["logits"][0, 0])
    return np.stack(rows)


@pytest.mark.slow
def test_a_transformer_gives_identical_greedy_translations_without_torch(model_folder, tmp_path):
    lines = Path(write_reversals(tmp_path, "lines", 100)["source"]).read_text(encoding="utf-8").splitlines()
    folder = tmp_path / "onnx"
    folder.mkdir()
    expected = Translator.from_pretrained(model_folder, device="cpu").translate(lines, num_beams=1)
    write_onnx(load_model_folder(model_folder), load_tokenizer(model_folder), folder)
    code = (
        "import sys, json; from pathlib import Path; "
        "from vanilla_transformer.exporting.onnx_translator import OnnxTranslator; "
        "print(json.dumps(OnnxTranslator(Path(sys.argv[1]), threads=1).translate(json.load(sys.stdin)))); "
        "assert not {'torch', 'transformers'} & sys.modules.keys()"
    )
    command = [sys.executable, "-c", code, str(folder)]
    output = subprocess.run(command, input=json.dumps(lines), stdout=subprocess.PIPE, encoding="utf-8", check=True)
    assert json.loads(output.stdout) == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"no_repeat_ngram_size": 3}, "no_repeat_ngram_size=3 in .* is not offered in ONNX"),
        ({"bad_words_ids": [[4, 5]]}, r"bad_words_ids=\[4, 5\] in .* must be one token each"),
        ({"max_tokens_beyond_source": None}, "neither max_length nor max_tokens_beyond_source"),
    ],
)
def test_what_it_does_not_offer_is_refused(model_folder, tmp_path, changes, message):
    settings = {"eos_token_id": 2, "decoder_start_token_id": 1, "pad_token_id": 0, "max_tokens_beyond_source": 5}
    settings = {name: value for name, value in (settings | changes).items() if value is not None}
    Path(tmp_path, "generation_config.json").write_text(json.dumps(settings), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        OnnxTranslator(tmp_path)
