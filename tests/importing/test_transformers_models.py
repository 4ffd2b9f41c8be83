# SPDX-License-Identifier: Apache-2.0
"""Random models of transformers' MarianMT and FSMT: the same logits, tokens and texts after the import."""

import json
import shutil
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
from huggingface_hub import ModelCard
from transformers import (
    AutoTokenizer,
    FSMTConfig,
    FSMTForConditionalGeneration,
    MarianConfig,
    MarianMTModel,
    PreTrainedTokenizerFast,
)
from transformers.models.marian.tokenization_marian import MarianTokenizer

from tests.importing.conftest import LINES, largest_difference, train_sentencepiece
from vanilla_transformer.data.tokenizer import load_tokenizer
from vanilla_transformer.exporting.marian import write_marian
from vanilla_transformer.hub.published_folder import check_folder, list_files
from vanilla_transformer.importing.import_model import import_model
from vanilla_transformer.inference.model_folder import load_model_folder
from vanilla_transformer.inference.translator import Translator


def write_json(path: Path, content) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


def marian_folder(folder: Path, *, shared: bool, one_spm: bool = False, bias: bool = True, **changes):
    """A random MarianMT with its tokenizer, as OPUS-MT is published."""
    folder.mkdir()
    source = train_sentencepiece(folder / "source.spm", LINES[:8], "unigram", 300)
    target = train_sentencepiece(folder / "target.spm", LINES[:8] if one_spm else LINES[2:9], "unigram", 280)
    pieces = []
    for path in (source, target):
        processor = sentencepiece.SentencePieceProcessor(str(path))
        pieces.append([processor.IdToPiece(i) for i in range(3, processor.GetPieceSize())])
    groups = [pieces[0] + pieces[1]] if shared else pieces
    tokens = [["</s>", "<unk>", *sorted(set(group)), "<pad>"] for group in groups]
    names = ["vocab.json", "target_vocab.json"]
    for name, group in zip(names, tokens, strict=False):
        write_json(folder / name, {token: i for i, token in enumerate(group)})
    write_json(
        folder / "tokenizer_config.json",
        {"source_lang": "en", "target_lang": "de", "separate_vocabs": not shared, "tokenizer_class": "MarianTokenizer"},
    )
    # With two vocabularies the source's pad token need not be the target's: transformers has one id for both.
    size = len(tokens[0])
    config = MarianConfig(
        vocab_size=size,
        decoder_vocab_size=len(tokens[-1]),
        share_encoder_decoder_embeddings=shared,
        d_model=16,
        encoder_layers=2,
        decoder_layers=1,
        encoder_ffn_dim=24,
        decoder_ffn_dim=24,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        activation_function="silu",
        pad_token_id=len(tokens[-1]) - 1,
        decoder_start_token_id=len(tokens[-1]) - 1,
        eos_token_id=0,
        forced_eos_token_id=0,
        scale_embedding=True,
        init_std=0.3,
        max_position_embeddings=64,
        **changes,
    )
    model: Any = MarianMTModel(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "embed_positions" not in name:  # are computed, and not saved
                parameter.add_(0.1 * torch.randn_like(parameter))
        model.get_input_embeddings().weight[config.pad_token_id] = 0
        if bias:
            model.final_logits_bias.normal_()
    model.generation_config.update(num_beams=6, max_length=40, bad_words_ids=[[config.pad_token_id]])
    model.save_pretrained(folder)
    return model


@pytest.fixture(params=[True, False], ids=["shared", "two vocabularies"])
def shared(request) -> bool:
    return request.param


def logits_of(model):
    return lambda source, target: model(input_ids=source, decoder_input_ids=target, use_cache=False).logits


def test_marian_has_the_same_logits(tmp_path, shared, draw):
    marian = marian_folder(tmp_path / "opus", shared=shared)
    ours = import_model(tmp_path / "opus", tmp_path / "ours")
    start = marian.config.decoder_start_token_id
    targets = [[start, *target] for target in draw(2, start)]
    sources = draw(2, marian.config.pad_token_id)
    assert largest_difference(load_model_folder(tmp_path / "ours"), logits_of(marian), sources, targets) < 1e-4
    assert ours.config.layer_norm_eps == 1e-5


def test_marian_gives_the_same_greedy_tokens(tmp_path, shared, draw):
    marian = marian_folder(tmp_path / "opus", shared=shared)
    import_model(tmp_path / "opus", tmp_path / "ours")
    ours: Any = load_model_folder(tmp_path / "ours")
    for source in draw(2, marian.config.pad_token_id):
        ids = torch.tensor([source])
        expected = marian.generate(ids, num_beams=1, max_length=12)
        assert torch.equal(ours.generate(ids, num_beams=1, max_length=12), expected)


def test_marian_gives_the_same_ids_and_texts(tmp_path, shared):
    marian_folder(tmp_path / "opus", shared=shared)
    import_model(tmp_path / "opus", tmp_path / "ours")
    theirs = MarianTokenizer.from_pretrained(tmp_path / "opus")
    ours: Any = load_tokenizer(tmp_path / "ours")
    for line in LINES[:8]:  # the source's scripts
        assert ours(line)["input_ids"] == theirs(line)["input_ids"], line
    for line in LINES[2:9]:  # the target's scripts
        target = theirs(text_target=line)["input_ids"]
        assert ours(text_target=line)["input_ids"] == target, line
        assert ours.decode(target, skip_special_tokens=True).strip() == theirs.decode(target, skip_special_tokens=True)


def test_marian_with_one_sentencepiece_model_has_one_tokenizer(tmp_path):
    marian_folder(tmp_path / "opus", shared=True, one_spm=True)
    import_model(tmp_path / "opus", tmp_path / "ours")
    assert not (tmp_path / "ours" / "target_tokenizer").exists()


def test_the_folder_is_an_ordinary_one(tmp_path):
    marian_folder(tmp_path / "opus", shared=True)
    import_model(tmp_path / "opus", tmp_path / "ours")
    assert check_folder(tmp_path / "ours") == []
    generation = json.loads((tmp_path / "ours" / "generation_config.json").read_text(encoding="utf-8"))
    assert (generation["num_beams"], generation["max_length"], generation["forced_eos_token_id"]) == (6, 40, 0)
    card = ModelCard.load(tmp_path / "ours" / "README.md")
    assert "imported by `vanilla-transformer import` from transformers' MarianMT, opus" in card.text
    assert card.data.to_dict()["language"] == ["en", "de"]
    assert AutoTokenizer.from_pretrained(tmp_path / "ours").is_fast
    [line] = Translator.from_pretrained(tmp_path / "ours").translate(["The Transformer"], num_beams=1)
    assert isinstance(line, str)


def test_an_export_comes_back_with_the_same_translations(model_folder, tmp_path):
    write_marian(load_model_folder(model_folder), load_tokenizer(model_folder), tmp_path)
    import_model(tmp_path, tmp_path / "model")
    lines = [" ".join(letters) for letters in permutations("abcd")]
    translators = (Translator.from_pretrained(folder, device="cpu") for folder in (model_folder, tmp_path / "model"))
    assert len({tuple(translator.translate(lines)) for translator in translators}) == 1


def test_a_bias_of_zeros_is_none(tmp_path):
    marian_folder(tmp_path / "opus", shared=True, bias=False)
    assert not import_model(tmp_path / "opus", tmp_path / "ours").config.projection_bias


def fsmt_folder(folder: Path):
    """A random FSMT with its two vocabularies and merges, as fairseq's WMT models are published."""
    words = {
        "src": ["l", "o", "w", "e", "r</w>", "lo", "low", "er</w>", "w</w>"],
        "tgt": ["t", "ief</w>", "i", "er</w>"],
    }
    sizes = {}
    folder.mkdir()
    for side, own in words.items():
        tokens = ["<s>", "<pad>", "</s>", "<unk>", *own]
        sizes[f"{side}_vocab_size"] = len(tokens)
        write_json(folder / f"vocab-{side}.json", {token: i for i, token in enumerate(tokens)})
    (folder / "merges.txt").write_text("l o 9\nlo w 8\ne r</w> 7\n", encoding="utf-8")
    config = FSMTConfig(
        **sizes,
        langs=["en", "de"],
        d_model=16,
        encoder_layers=1,
        decoder_layers=2,
        encoder_ffn_dim=24,
        decoder_ffn_dim=24,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        init_std=0.3,
        max_position_embeddings=32,
    )
    model = FSMTForConditionalGeneration(config).eval()
    model.save_pretrained(folder)
    return model


def test_fsmt_has_the_same_logits_and_reads_its_merges(tmp_path, draw):
    fsmt = fsmt_folder(tmp_path / "fsmt")
    import_model(tmp_path / "fsmt", tmp_path / "ours")
    ours, targets = load_model_folder(tmp_path / "ours"), [[2, *target] for target in draw(4, 8)]
    assert largest_difference(ours, logits_of(fsmt), draw(4, 13), targets) < 1e-4
    tokenizer = load_tokenizer(tmp_path / "ours")
    assert tokenizer("lower low x")["input_ids"] == [10, 11, 9, 12, 3, 2]
    assert tokenizer.decode([4, 5, 2], skip_special_tokens=True) == "tief"


@pytest.mark.parametrize("stack", ["encoder", "decoder"])
def test_positions_that_were_trained_are_refused(stack, tmp_path):
    model = fsmt_folder(tmp_path / "fsmt")
    with torch.no_grad():
        model.get_submodule(f"model.{stack}.embed_positions").weight += 0.1
    model.save_pretrained(tmp_path / "fsmt")
    with pytest.raises(ValueError, match=rf"model\.{stack}\.embed_positions\.weight holds no sinusoids"):
        import_model(tmp_path / "fsmt", tmp_path / "ours")


BROKEN = {
    "no vocabulary": (lambda f: (f / "vocab.json").unlink(), r"opus has no vocab\.json, the vocabulary"),
    "no SentencePiece model": (lambda f: (f / "source.spm").unlink(), r"source\.spm does not exist"),
    "vocabulary with holes": (
        lambda f: write_json(f / "vocab.json", {"</s>": 0, "<unk>": 5}),
        r"vocab\.json is no vocabulary of tokens and ids: its ids are not 0, 1, 2",
    ),
    "vocabulary of another size": (
        lambda f: write_json(f / "vocab.json", {"</s>": 0, "<unk>": 1, "<pad>": 2}),
        "states vocab_size=3, but its weights have vocab_size=",
    ),
    "no unknown token": (
        lambda f: write_json(f / "vocab.json", {"</s>": 0, "<pad>": 1}),
        "has no token '<unk>'",
    ),
    "weights cut off": (
        lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:200]),
        r"model\.safetensors is damaged",
    ),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "has no weights: expected model.safetensors or "),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_cannot_be_imported_is_one_line(kind, tmp_path):
    marian_folder(tmp_path / "opus", shared=True, one_spm=True)
    damage, message = BROKEN[kind]
    damage(tmp_path / "opus")
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        import_model(tmp_path / "opus", tmp_path / "ours")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "ours").exists()


@pytest.mark.parametrize("way", ["with the package", "without it"])
def test_a_folder_of_two_tokenizers_can_be_saved_and_opened_again(tmp_path, way):
    marian_folder(tmp_path / "opus", shared=False)
    import_model(tmp_path / "opus", tmp_path / "ours")
    tokenizer = load_tokenizer(tmp_path / "ours")
    tokenizer.save_pretrained(tmp_path / "again")
    expected = tokenizer(text_target=LINES[4])["input_ids"]
    if way == "with the package":
        assert load_tokenizer(tmp_path / "again")(text_target=LINES[4])["input_ids"] == expected
    else:
        opened = PreTrainedTokenizerFast.from_pretrained(tmp_path / "again", subfolder="target_tokenizer")
        assert opened(LINES[4])["input_ids"] == expected
    assert "target_tokenizer/tokenizer.json" in dict(list_files(tmp_path / "ours"))  # is published
    assert 'subfolder="target_tokenizer"' in (tmp_path / "ours" / "README.md").read_text(encoding="utf-8")
    assert tokenizer(LINES[4])["input_ids"] == load_tokenizer(tmp_path / "again")(LINES[4])["input_ids"] != expected


def test_beam_search_has_marian_s_translations_and_scores(tmp_path, draw):
    marian = marian_folder(tmp_path / "opus", shared=True, one_spm=True)
    marian.generation_config.update(length_penalty=1.4)
    marian.generation_config.save_pretrained(tmp_path / "opus")
    import_model(tmp_path / "opus", tmp_path / "ours")
    translator = Translator.from_pretrained(tmp_path / "ours", device="cpu")
    options = {"num_beams": 3, "max_length": 8, "return_dict_in_generate": True, "output_scores": True}
    expected = marian.generate(**translator.tokenizer(LINES[0], return_tensors="pt"), **options)
    [[best]] = translator.n_best(LINES[:1], 1, num_beams=3, max_new_tokens=7)
    assert best.text == translator.tokenizer.decode(expected.sequences[0], skip_special_tokens=True)
    assert best.score == pytest.approx(expected.sequences_scores.item(), abs=1e-4)
    [[papers]] = translator.n_best(LINES[:1], 1, num_beams=3, max_new_tokens=7, alpha=0.6)
    assert papers.score != pytest.approx(best.score, abs=1e-2)


def test_a_penalty_that_is_not_stored_is_transformers_default(tmp_path):
    marian_folder(tmp_path / "opus", shared=True, one_spm=True)
    assert import_model(tmp_path / "opus", tmp_path / "ours").generation_config.length_penalty == 1.0


@pytest.mark.parametrize("is_declared", [True, False])
def test_two_vocabularies_without_a_target_tokenizer_are_refused(tmp_path, is_declared):
    marian_folder(tmp_path / "opus", shared=False)
    import_model(tmp_path / "opus", tmp_path / "ours")
    shutil.rmtree(tmp_path / "ours" / "target_tokenizer")
    if not is_declared:  # a tokenizer of another origin
        settings = json.loads((tmp_path / "ours" / "tokenizer_config.json").read_text(encoding="utf-8"))
        del settings["has_target_tokenizer"]
        write_json(tmp_path / "ours" / "tokenizer_config.json", settings)
    with pytest.raises((ValueError, FileNotFoundError), match="target_tokenizer/") as error:
        Translator.from_pretrained(tmp_path / "ours")
    assert "\n" not in str(error.value)
