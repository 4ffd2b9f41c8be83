# SPDX-License-Identifier: Apache-2.0
"""CTranslate2 finds what `generate` finds, for each architecture that it can have."""

from pathlib import Path
from typing import Any

import ctranslate2
import pytest
import torch
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from tests.conftest import write_reversals
from tests.families import FAMILIES, PAD
from vanilla_transformer import RNNSeq2SeqConfig, VanillaTransformerConfig
from vanilla_transformer.cli import main
from vanilla_transformer.data.tokenizer import load_tokenizer
from vanilla_transformer.exporting.ctranslate2 import check_ctranslate2_supports, vocabulary_of, write_ctranslate2
from vanilla_transformer.inference.model_folder import load_model_folder

TRANSFORMER = FAMILIES[0]


def open_translator(folder: Path) -> ctranslate2.Translator:
    # CTranslate2 sets OpenMP's number of threads, which is torch's too.
    return ctranslate2.Translator(str(folder), device="cpu", intra_threads=torch.get_num_threads())


def targets_of(model: Any, folder: Path, sources: torch.Tensor, beams: int, penalty: float = 1.0) -> list[list[int]]:
    """The targets of 10 tokens of a folder whose tokens are the ids."""
    results = open_translator(folder).translate_batch(
        [[str(token) for token in source if token != PAD] for source in sources.tolist()],
        beam_size=beams,
        length_penalty=penalty,
        min_decoding_length=10,
        max_decoding_length=10,
    )
    return [[int(token) for token in result.hypotheses[0]] for result in results]


CHANGES = [
    {},
    {"norm_position": "pre"},
    {"norm_position": "pre", "final_layer_norm": False},
    {"final_layer_norm": True},
    {"attention_bias": True},
    {"tie_word_embeddings": False, "share_encoder_decoder_embeddings": True},
    {"share_encoder_decoder_embeddings": False, "projection_bias": True},
    {"embedding_layer_norm": True, "position_offset": 2},
    {"position_embedding": "learned", "max_position_embeddings": 12},
    {"sinusoid_layout": "concatenated", "sinusoid_exponent": "tensor2tensor", "scale_embedding": False},
    {"activation_function": "gelu"},
    {"d_k": 6, "d_v": 6},
    {"layer_norm_eps": 1e-3},
    {"decoder_vocab_size": 23, "share_encoder_decoder_embeddings": False},
]


@pytest.mark.parametrize("changes", CHANGES, ids=str)
def test_targets_and_scores_are_those_of_generate(changes, tmp_path):
    model: Any = TRANSFORMER.model(**changes)
    with torch.no_grad():  # CTranslate2 forbids EOS where a length is given; the others treat it as any token
        for norm in (model.model.decoder.norm, model.model.decoder.layers[-1].feed_forward_norm):
            if hasattr(norm, "bias"):
                norm.bias.fill_(1.0)
        model.lm_head.weight[model.config.eos_token_id] = -1.0
    tokens = [str(token) for token in range(31)]
    target_tokens = tokens[: model.config.decoder_vocab_size]
    write_ctranslate2(model, tokens, tmp_path, max_length=12, target_tokens=target_tokens)
    sources = torch.randint(3, 31, (8, 6))
    sources[0, 4:] = PAD
    model.generation_config.eos_token_id = None
    for beams, penalty in ((1, 1.0), (4, 0.0), (4, 1.0)):
        options = {"length_penalty": penalty} if beams > 1 else {}
        expected = model.generate(sources, num_beams=beams, max_new_tokens=10, **options)
        assert targets_of(model, tmp_path, sources, beams, penalty) == expected[:, 1:].tolist()
    # Scores of the targets, which show what the best tokens may hide.
    lines = [[str(token) for token in source if token != PAD] for source in sources.tolist()]
    found = open_translator(tmp_path).score_batch(
        lines, [[str(token) for token in row[1:]] for row in expected.tolist()]
    )
    with torch.no_grad():
        logits = model(sources, decoder_input_ids=expected).logits.log_softmax(dim=-1)[:, :-1]
    chosen = logits.gather(2, expected[:, 1:, None]).squeeze(2)
    scores = torch.tensor([result.log_probs[:10] for result in found])
    torch.testing.assert_close(scores, chosen, atol=1e-4, rtol=0)


def test_the_command_writes_a_folder_that_is_all_that_is_needed(model_folder, tmp_path):
    folder = tmp_path / "folder"
    assert main(["export", str(model_folder), str(folder), "--to", "ctranslate2"]) == 0
    lines = Path(write_reversals(tmp_path, "lines", 1000)["source"]).read_text(encoding="utf-8").splitlines()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    sources = [encoding.tokens for encoding in tokenizer.encode_batch(lines)]
    options = {"beam_size": 4, "length_penalty": 1.0, "max_decoding_length": 8, "max_batch_size": 100}
    found = open_translator(folder).translate_batch(sources, **options)
    texts = [" ".join(result.hypotheses[0]) for result in found]
    model, ours = load_model_folder(model_folder), load_tokenizer(model_folder)
    # CTranslate2 stops at its first finished hypotheses, as transformers does with early_stopping.
    search = {"num_beams": 4, "length_penalty": 1.0, "early_stopping": True, "max_new_tokens": 8}
    expected = ours.batch_decode(model.generate(**ours(lines, return_tensors="pt", padding=True), **search), True)
    assert texts == expected


def test_int8_is_smaller_and_close(tmp_path):
    model: Any = TRANSFORMER.model(d_model=64, d_ff=256)
    tokens, lines = [str(token) for token in range(31)], [["5", "6", "7", "8"]] * 2
    found = {}
    for quantization in ("float32", "int8"):
        folder = tmp_path / quantization
        folder.mkdir()
        write_ctranslate2(model, tokens, folder, quantization, max_length=12)
        result = open_translator(folder).score_batch(lines, [["9", "10"], ["11", "12"]])
        found[quantization] = (folder / "model.bin").stat().st_size, torch.tensor([each.log_probs for each in result])
    assert found["int8"][0] < 0.4 * found["float32"][0]
    assert 0 < (found["int8"][1] - found["float32"][1]).abs().max() < 0.5


def test_rows_without_a_token_get_a_name():
    tokenizer = PreTrainedTokenizerFast.__new__(PreTrainedTokenizerFast)
    tokenizer.get_vocab = lambda: {"<pad>": 0, "b": 2}
    assert vocabulary_of(tokenizer, 4) == ["<pad>", "<unused 1>", "b", "<unused 3>"]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (RNNSeq2SeqConfig(), "model_type='rnn_seq2seq': CTranslate2 is for Transformers, and this is none"),
        (VanillaTransformerConfig(d_v=16), "d_v=16: CTranslate2 can have only d_k=64; its heads have one width"),
        (
            VanillaTransformerConfig(activation_function="mish"),
            "activation_function='mish' is not known to CTranslate2",
        ),
        (VanillaTransformerConfig(eos_token_id=[2, 3]), r"eos_token_id=\[2, 3\] must be one token"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_architecture_that_ctranslate2_lacks_is_an_error(config, message):
    with pytest.raises(ValueError, match=message):
        check_ctranslate2_supports(config)
