# SPDX-License-Identifier: Apache-2.0
"""Source and target with one vocabulary or two, and every way to tie their embeddings and the projection."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSeq2SeqLM

from tests.families import FAMILIES, Family

SOURCE, TARGET, PROJECTION = "model.encoder.embed_tokens", "model.decoder.embed_tokens", "lm_head"
# tie_word_embeddings and share_encoder_decoder_embeddings → the embeddings that are one matrix
TIES: dict[tuple[bool, bool | None], list[set[str]]] = {
    (True, None): [{SOURCE, TARGET, PROJECTION}],
    (True, True): [{SOURCE, TARGET, PROJECTION}],
    (True, False): [{SOURCE}, {TARGET, PROJECTION}],
    (False, True): [{SOURCE, TARGET}, {PROJECTION}],
    (False, None): [{SOURCE}, {TARGET}, {PROJECTION}],
    (False, False): [{SOURCE}, {TARGET}, {PROJECTION}],
}
TWO_VOCABULARIES = {"vocab_size": 31, "decoder_vocab_size": 37, "share_encoder_decoder_embeddings": False}


@pytest.fixture(params=FAMILIES[:2], ids=lambda family: family.name)  # Transformer and RNN
def family(request) -> Family:
    return request.param


def matrices(model: Any) -> dict[str, torch.Tensor]:
    return {name: model.get_submodule(name).weight for name in (SOURCE, TARGET, PROJECTION)}


def tied_groups(model: Any) -> list[set[str]]:
    groups: dict[int, set[str]] = {}
    for name, matrix in matrices(model).items():
        groups.setdefault(id(matrix), set()).add(name)
    return list(groups.values())


@pytest.mark.parametrize(("tied", "shared"), TIES, ids=str)
def test_tied_embeddings_are_one_matrix_also_saved_and_loaded(family, batch, tmp_path: Path, tied, shared):
    fields = {"tie_word_embeddings": tied, "share_encoder_decoder_embeddings": shared, "decoder_vocab_size": None}
    model = family.model(**fields)
    assert tied_groups(model) == TIES[tied, shared]
    model.save_pretrained(tmp_path)
    written = {f"{name}.weight" for name in (SOURCE, TARGET, PROJECTION)} & load_file(
        tmp_path / "model.safetensors"
    ).keys()
    assert len(written) == len(TIES[tied, shared])
    loaded, report = AutoModelForSeq2SeqLM.from_pretrained(tmp_path, output_loading_info=True)
    assert report["missing_keys"] == report["unexpected_keys"] == set()
    assert tied_groups(loaded) == TIES[tied, shared]
    assert torch.equal(loaded(**batch).logits, model(**batch).logits)
    base = family.base_class.from_pretrained(tmp_path)
    assert (base.encoder.embed_tokens.weight is base.decoder.embed_tokens.weight) == (TARGET in TIES[tied, shared][0])
    assert torch.equal(base.decoder.embed_tokens.weight, model.model.decoder.embed_tokens.weight)


@pytest.mark.parametrize("tied", [True, False])
def test_two_vocabularies_have_matrices_of_their_sizes(family, batch, tmp_path: Path, tied):
    model = family.model(**TWO_VOCABULARIES, tie_word_embeddings=tied)
    assert {name: len(matrix) for name, matrix in matrices(model).items()} == {SOURCE: 31, TARGET: 37, PROJECTION: 37}
    batch["labels"][0, :2] = torch.tensor([36, 31])  # beyond the source's
    output = model(**batch)
    assert output.logits.shape == (3, 6, 37)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    assert torch.equal(loaded(**batch).logits, output.logits)
    with pytest.raises(IndexError):
        model(input_ids=batch["labels"].clamp(min=0), labels=batch["labels"])


@pytest.mark.parametrize("tied", [True, False])
def test_two_vocabularies_are_resized_one_by_one(family, batch, tied):
    model = family.model(**TWO_VOCABULARIES, tie_word_embeddings=tied)
    before, logits = matrices(model), model(**batch).logits
    assert model.resize_token_embeddings(40) is model.get_input_embeddings()
    assert torch.equal(model(**batch).logits, logits)
    assert model.resize_decoder_token_embeddings(45) is model.get_decoder().embed_tokens
    after = matrices(model)
    assert {name: len(matrix) for name, matrix in after.items()} == {SOURCE: 40, TARGET: 45, PROJECTION: 45}
    assert all(torch.equal(after[name][: len(matrix)], matrix) for name, matrix in before.items())
    torch.testing.assert_close(model(**batch).logits[..., :37], logits)
    assert (model.config.vocab_size, model.config.decoder_vocab_size) == (40, 45)
    assert len(tied_groups(model)) == (2 if tied else 3)


def test_one_vocabulary_is_resized_as_a_whole(family):
    model = family.model(**TWO_VOCABULARIES | {"decoder_vocab_size": None})
    model.resize_token_embeddings(40)
    assert {len(matrix) for matrix in matrices(model).values()} == {40}
    with pytest.raises(ValueError, match="decoder_vocab_size is None; call resize_token_embeddings"):
        model.resize_decoder_token_embeddings(41)


def test_vocabularies_of_two_sizes_share_no_matrix(family):
    with pytest.raises(
        ValueError, match="decoder_vocab_size=37 differs from vocab_size=31.*set share_encoder_decoder_emb"
    ):
        family.config(vocab_size=31, decoder_vocab_size=37, share_encoder_decoder_embeddings=True)
    shared = family.config(vocab_size=31, decoder_vocab_size=31, share_encoder_decoder_embeddings=True)
    assert shared.decoder_vocab_size is None


def test_transition_scores_of_beams_are_those_of_the_targets_vocabulary(family, source):
    model = family.model(**TWO_VOCABULARIES, tie_word_embeddings=False)
    options = {"num_beams": 3, "max_new_tokens": 6, "length_penalty": 0.0}
    output = model.generate(**source, **options, output_scores=True, return_dict_in_generate=True)
    scores = model.compute_transition_scores(output.sequences, output.scores, output.beam_indices)
    torch.testing.assert_close(scores.sum(dim=1), output.sequences_scores)
