# SPDX-License-Identifier: Apache-2.0
import os
from functools import partial
from typing import Any

import numpy as np
import pytest
import sentencepiece
import torch

from vanilla_transformer import VanillaTransformerConfig
from vanilla_transformer.benchmark import marian_engine
from vanilla_transformer.benchmark.configuration import DecodingConfig
from vanilla_transformer.benchmark.random_model import random_sources
from vanilla_transformer.benchmark.systems import FAST, Batch, build_system

SIZE: dict[str, Any] = {
    "vocab_size": 300,
    "d_model": 32,
    "d_ff": 64,
    "num_layers": 2,
    "num_decoder_layers": 1,
    "num_heads": 4,
}
PYTHON = "VANILLA_TRANSFORMER_BERGAMOT_PYTHON"


def searching(beams: int) -> DecodingConfig:
    return DecodingConfig(beams=beams, alpha=0.0, length_penalty=0.0, early_stopping=False)


def untied_model():
    """One that does not repeat its input, as one with a single random matrix does."""
    config = VanillaTransformerConfig(**SIZE, tie_word_embeddings=False, share_encoder_decoder_embeddings=True)
    return marian_engine.random_marian_model(config)


def test_every_token_is_a_character_of_the_vocabulary(tmp_path):
    model = untied_model()
    (tmp_path / "vocab.spm").write_bytes(marian_engine.sentencepiece_of_ids(model.config))
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "vocab.spm"))
    tokens = random_sources(300, 1, 400)[0]
    text = "".join(chr(marian_engine.FIRST_CHARACTER + token) for token in tokens)
    assert processor.encode(text) == tokens
    assert (processor.unk_id(), processor.bos_id(), processor.eos_id()) == (0, 1, 2)


def test_binary_model_begins_its_data_at_256_bytes():
    """As Marian's loader expects; after it come the arrays, one behind the other."""
    weights, text = np.arange(6, dtype=np.float32).reshape(2, 3), np.frombuffer(b"ab\0", dtype=np.int8)
    written = marian_engine.binary_model({"Wemb": weights, "special:model.yml": text})
    assert written[:16] == bytes([1, *[0] * 7, 2, *[0] * 7])  # version, items
    assert len(written) % 256 == weights.nbytes + text.nbytes
    assert written.endswith(weights.tobytes() + b"ab\0")


def test_python_that_cannot_be_run_is_an_error(tmp_path):
    batches, search = [Batch([[5, 2]], 3)], searching(1)
    with (
        pytest.raises(ValueError, match="python='nowhere/python' cannot be run: No such file"),
        marian_engine.bergamot_system("nowhere/python", tmp_path, "float32", batches, search),
    ):
        pass


def test_python_without_bergamot_is_an_error(tmp_path):
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
    script.chmod(0o700)
    batches, search = [Batch([[5, 2]], 3)], searching(1)
    with (
        pytest.raises(ValueError, match="ended before it had translated"),
        marian_engine.bergamot_system(str(script), tmp_path, "float32", batches, search) as decode,
    ):
        decode(1)


@pytest.mark.slow
@pytest.mark.skipif(PYTHON not in os.environ, reason=f"{PYTHON} names no Python, 3.8 to 3.10, with bergamot")
@pytest.mark.parametrize("beams", [1, 4])
@pytest.mark.parametrize("is_endless", [False, True])
def test_targets_are_ours(tmp_path, beams, is_endless):
    model = untied_model()
    with torch.no_grad():  # some sentences end early
        model.lm_head.weight[model.config.eos_token_id] *= 1.5
    marian_engine.write_marian(model, tmp_path, is_endless)
    sources = [[*source, model.config.eos_token_id] for source in random_sources(SIZE["vocab_size"], 40, 9)]
    if is_endless:
        with torch.no_grad():
            model.lm_head.weight[model.config.eos_token_id] = 0
    systems = {
        "marian": partial(marian_engine.bergamot_system, os.environ[PYTHON], tmp_path, "float32"),
        "ours": build_system(FAST["float32"], model, tmp_path, max_length=0),
    }
    found = {}
    for name, system in systems.items():
        with system([Batch(sources, 20, is_endless)], searching(beams)) as decode:
            found[name] = decode(1)
    assert found["marian"] == found["ours"]
    assert len({tuple(target) for target in found["ours"]}) > 20
