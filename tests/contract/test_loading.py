# SPDX-License-Identifier: Apache-2.0
"""Saving, loading and resizing as transformers does it, for each model."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForSeq2SeqLM

from tests.families import FAMILIES

ONE_VOCABULARY = [family for family in FAMILIES if "decoder_vocab_size" not in family.tiny]  # test_vocabularies.py: two


def embedding_matrices(model) -> list[torch.nn.Module]:
    """Source embedding, target embedding and the projection before the softmax."""
    return [model.get_input_embeddings(), model.model.decoder.embed_tokens, model.get_output_embeddings()]


# -- saving and loading


def test_auto_classes_open_what_was_saved(family, batch, tmp_path):
    model = family.model()
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    assert isinstance(loaded, family.seq2seq_class)
    assert isinstance(AutoModel.from_pretrained(tmp_path), family.base_class)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), family.config_class)
    assert torch.equal(loaded(**batch).logits, model(**batch).logits)


def test_the_base_model_loads_the_same_weights(family, batch, tmp_path):
    model = family.model()
    model.save_pretrained(tmp_path)
    base = family.base_class.from_pretrained(tmp_path).eval()
    labels = batch.pop("labels").clamp(min=0)
    expected = model.model
    outputs = (m(**batch, decoder_input_ids=labels).last_hidden_state for m in (base, expected))
    assert torch.equal(next(outputs), next(outputs))


def test_loading_in_bfloat16_keeps_the_positions_exact(family, batch, tmp_path):
    family.model().save_pretrained(tmp_path)
    loaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    cast = family.model().to(torch.bfloat16)
    assert torch.equal(loaded(**batch).logits, cast(**batch).logits)


@pytest.mark.parametrize("family", ONE_VOCABULARY, ids=lambda family: family.name)
def test_tied_weights_are_one_tensor_and_written_once(family, tmp_path):
    from safetensors import safe_open

    model = family.model()
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        written = [name for name in file.keys() if "embed_tokens" in name or "lm_head" in name]  # noqa: SIM118 -- not a dict
    assert len(written) == 1
    loaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    assert loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight
    assert loaded.model.decoder.embed_tokens.weight is loaded.get_input_embeddings().weight


def test_untied_weights_are_three_tensors(family, batch, tmp_path):
    model = family.model(tie_word_embeddings=False)
    assert len({module.weight.data_ptr() for module in embedding_matrices(model)}) == 3
    model.save_pretrained(tmp_path)
    assert torch.equal(AutoModelForSeq2SeqLM.from_pretrained(tmp_path)(**batch).logits, model(**batch).logits)


def test_config_survives_json(family, tmp_path):
    config = family.config(dropout=0.25)
    config.save_pretrained(tmp_path)
    assert family.config_class.from_pretrained(tmp_path).to_dict() == config.to_dict()


def test_a_sharded_checkpoint_is_the_same_model(family, batch, tmp_path):
    model = family.model()
    model.save_pretrained(tmp_path, max_shard_size="2KB")
    written = json.loads((tmp_path / "model.safetensors.index.json").read_text(encoding="utf-8"))["weight_map"]
    assert len(set(written.values())) > 2
    assert torch.equal(AutoModelForSeq2SeqLM.from_pretrained(tmp_path)(**batch).logits, model(**batch).logits)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("device_map", ["cpu", {"": "cpu"}, "auto"], ids=["name", "whole model", "auto"])
def test_a_device_map_loads_the_same_model(family, batch, tmp_path, device_map, tied):
    model = family.model(tie_word_embeddings=tied)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path, device_map=device_map)
    assert {parameter.device.type for parameter in loaded.parameters()} == {"cpu"}
    assert torch.equal(loaded(**batch).logits, model(**batch).logits)


@pytest.mark.parametrize("tied", [True, False])
def test_disk_offloading_computes_the_same(family, batch, tmp_path, tied):
    model = family.model(tie_word_embeddings=tied)
    model.save_pretrained(tmp_path)
    parts = {f"model.decoder.{name}" for name, _ in model.model.decoder.named_children()}
    places = {part: "disk" if part.endswith(("layers", "stack")) else "cpu" for part in parts}
    loaded = AutoModelForSeq2SeqLM.from_pretrained(
        tmp_path,
        device_map={"model.encoder": "cpu", "lm_head": "cpu"} | places,
        offload_folder=tmp_path / "offload",
    )
    assert "meta" in {parameter.device.type for parameter in loaded.model.decoder.parameters()}
    with torch.no_grad():
        assert torch.equal(loaded(**batch).logits, model(**batch).logits)


def test_a_model_on_the_meta_device_loads_a_state_dict(family, batch):
    model = family.model()
    with torch.device("meta"):
        empty = family.seq2seq_class(family.config())
    assert {parameter.device.type for parameter in empty.parameters()} == {"meta"}
    empty.load_state_dict(model.state_dict(), assign=True)
    assert torch.equal(empty.eval()(**batch).logits, model(**batch).logits)


def test_a_missing_weight_is_reported_and_initialised(family, batch, tmp_path):
    model = family.model()
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    matrices = [name for name in weights if name.startswith("model.decoder.") and weights[name].dim() == 2]
    name = next(name for name in matrices if "embed_tokens" not in name)  # which may be tied
    del weights[name]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded, report = AutoModelForSeq2SeqLM.from_pretrained(tmp_path, output_loading_info=True)
    assert report["missing_keys"] == {name}
    assert report["unexpected_keys"] == set()
    found = loaded.state_dict()
    assert found[name].isfinite().all()
    assert found[name].std() > 0
    assert all(torch.equal(found[other], weight) for other, weight in weights.items())


def test_an_unexpected_weight_is_reported_and_left_out(family, batch, tmp_path):
    model = family.model()
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors") | {"model.extra.weight": torch.zeros(2)}
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded, report = AutoModelForSeq2SeqLM.from_pretrained(tmp_path, output_loading_info=True)
    assert report["unexpected_keys"] == {"model.extra.weight"}
    assert report["missing_keys"] == set()
    assert torch.equal(loaded(**batch).logits, model(**batch).logits)


def test_mismatched_shapes_are_an_error(family, tmp_path):
    family.model().save_pretrained(tmp_path)
    config = family.config(vocab_size=29)
    with pytest.raises(RuntimeError, match="size mismatch|MISMATCH|ignore_mismatched_sizes"):
        AutoModelForSeq2SeqLM.from_pretrained(tmp_path, config=config)
    loaded, report = AutoModelForSeq2SeqLM.from_pretrained(
        tmp_path, config=config, ignore_mismatched_sizes=True, output_loading_info=True
    )
    width = loaded.get_input_embeddings().embedding_dim
    assert ("model.encoder.embed_tokens.weight", (31, width), (29, width)) in report["mismatched_keys"]


# -- resizing


@pytest.mark.parametrize("family", ONE_VOCABULARY, ids=lambda family: family.name)
@pytest.mark.parametrize("tied", [True, False])
def test_resized_embeddings_keep_the_old_logits(family, batch, tied):
    model = family.model(tie_word_embeddings=tied)
    before = model(**batch).logits
    model.resize_token_embeddings(31 + 5)
    after = model(**batch).logits
    assert after.shape[-1] == 36
    assert torch.allclose(after[..., :31], before, atol=1e-6)  # the new rows change no old logit
    assert model.config.vocab_size == 36


@pytest.mark.parametrize("family", ONE_VOCABULARY, ids=lambda family: family.name)
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    ("asked", "size"),
    [
        ({"new_num_tokens": 40}, 40),
        ({"new_num_tokens": 20}, 20),
        ({"new_num_tokens": 33, "pad_to_multiple_of": 8}, 40),
        ({"pad_to_multiple_of": 16}, 32),
    ],
    ids=["longer", "shorter", "longer and padded", "padded"],
)
def test_resizing_all_embedding_matrices_keeps_their_rows(family, asked, size, tied):
    model = family.model(tie_word_embeddings=tied)
    old = [module.weight.detach().clone() for module in embedding_matrices(model)]
    assert model.resize_token_embeddings(**asked) is model.get_input_embeddings()
    assert len({module.weight.data_ptr() for module in embedding_matrices(model)}) == (1 if tied else 3)
    kept = min(size, 31)
    for module, before in zip(embedding_matrices(model), old, strict=True):
        assert module.weight.shape[0] == size
        assert module.weight.requires_grad
        assert torch.equal(module.weight[:kept], before[:kept])
    assert (model.get_input_embeddings().num_embeddings, model.lm_head.out_features) == (size, size)
    assert model.model.decoder.embed_tokens.num_embeddings == model.config.vocab_size == size


@pytest.mark.parametrize("family", ONE_VOCABULARY, ids=lambda family: family.name)
@pytest.mark.parametrize("tied", [True, False])
def test_a_resized_model_is_saved_loaded_and_trained_with_its_new_tokens(family, tmp_path, tied):
    model = family.model(tie_word_embeddings=tied)
    model.resize_token_embeddings(40)
    new = torch.tensor([[39, 38, 37, 2]])
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    assert torch.allclose(loaded(new, labels=new).logits, model(new, labels=new).logits, atol=1e-6)
    loaded.train()(input_ids=new, labels=new).loss.backward()
    assert all(module.weight.grad[37:].norm(dim=1).min() > 0 for module in embedding_matrices(loaded))
    assert loaded.eval().generate(new, max_new_tokens=4).shape[1] <= 5


@pytest.mark.parametrize("family", ONE_VOCABULARY, ids=lambda family: family.name)
@pytest.mark.parametrize("tied", [True, False])
def test_the_base_model_resizes_both_embeddings(family, batch, tied):
    base = family.model(tie_word_embeddings=tied).model
    base.resize_token_embeddings(40)
    assert {base.encoder.embed_tokens.num_embeddings, base.decoder.embed_tokens.num_embeddings} == {40}
    assert (base.encoder.embed_tokens.weight is base.decoder.embed_tokens.weight) == tied
    target = batch.pop("labels").clamp(min=0)
    assert base(**batch, decoder_input_ids=target).last_hidden_state.isfinite().all()


def test_frozen_embeddings_stay_frozen_when_resized(family):
    model = family.model(tie_word_embeddings=False)
    for module in embedding_matrices(model):
        module.requires_grad_(False)
    model.resize_token_embeddings(40)
    assert not any(module.weight.requires_grad for module in embedding_matrices(model))
