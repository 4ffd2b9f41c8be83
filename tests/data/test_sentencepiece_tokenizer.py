# SPDX-License-Identifier: Apache-2.0
"""Ids and texts are those of SentencePiece itself."""

from typing import Any

import pytest
import sentencepiece
from transformers import AutoTokenizer

from tests.data import sentencepiece_equality as equality
from tests.importing.conftest import LINES, train_sentencepiece
from vanilla_transformer.data.sentencepiece_tokenizer import (
    open_sentencepiece,
    read_sentencepiece,
    sentencepiece_tokenizer,
)
from vanilla_transformer.data.special_tokens import SpecialTokens

SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]


@pytest.fixture(params=["unigram", "bpe"])
def kind(request) -> str:
    return request.param


def trained(tmp_path, kind: str, lines: list[str] = LINES, **options):
    path = train_sentencepiece(tmp_path / "model.spm", lines, kind, vocab_size=420, **options)
    return read_sentencepiece(path), sentencepiece.SentencePieceProcessor(str(path))


def vocabulary_of(processor, first: list[str] = SPECIAL) -> list[str]:
    """In another order than SentencePiece's."""
    pieces = [processor.IdToPiece(i) for i in range(processor.GetPieceSize())]
    return [*first, *sorted(set(pieces) - set(first))]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"normalization_rule_name": "identity", "remove_extra_whitespaces": False},
        {"add_dummy_prefix": False},
        {"user_defined_symbols": ["Transformer", "ß"]},
    ],
    ids=str,
)
def test_ids_are_those_of_sentencepiece_on_every_script(tmp_path, kind, options):
    model, processor = trained(tmp_path, kind, LINES[:-5], **options)
    vocabulary = vocabulary_of(processor)
    tokenizer = sentencepiece_tokenizer(model, vocabulary, SpecialTokens())
    for line in LINES:
        expected = [
            vocabulary.index(piece) if piece in vocabulary else 3 for piece in processor.encode(line, out_type=str)
        ]
        assert tokenizer(line)["input_ids"] == [*expected, 2], line


def test_decoding_gives_the_text_of_sentencepiece(tmp_path, kind):
    model, processor = trained(tmp_path, kind)
    tokenizer = sentencepiece_tokenizer(model, vocabulary_of(processor), SpecialTokens())
    for line in LINES[:12]:
        assert tokenizer.decode(tokenizer(line)["input_ids"], skip_special_tokens=True) == processor.decode(
            processor.encode(line)
        )


def test_bytes_stand_for_characters_that_the_pieces_lack(tmp_path, kind):
    model, processor = trained(tmp_path, kind, LINES[:2], byte_fallback=True)
    vocabulary = vocabulary_of(processor)
    tokenizer = sentencepiece_tokenizer(model, vocabulary, SpecialTokens())
    for line in ["größer 注意 é", "🙂"]:
        expected = [vocabulary.index(piece) for piece in processor.encode(line, out_type=str)]
        assert tokenizer(line)["input_ids"][:-1] == expected
        assert tokenizer.decode(expected) == line


def test_a_token_of_the_target_alone_is_in_no_source(tmp_path, kind):
    model, processor = trained(tmp_path, kind, LINES[:1])
    vocabulary = [*vocabulary_of(processor), "▁größer"]
    tokenizer = sentencepiece_tokenizer(model, vocabulary, SpecialTokens())
    assert len(vocabulary) - 1 not in tokenizer("größer")["input_ids"]
    assert tokenizer.decode([len(vocabulary) - 1]) == "größer"


def test_a_character_of_the_target_alone_is_looked_up_as_the_toolkits_do(tmp_path, kind):
    model, processor = trained(tmp_path, kind, LINES[:1])
    vocabulary = [*vocabulary_of(processor), "ß"]
    assert processor.encode("aßer", out_type=str).count("ß") == 1
    assert len(vocabulary) - 1 in sentencepiece_tokenizer(model, vocabulary, SpecialTokens())("aßer")["input_ids"]


def test_a_piece_that_the_vocabulary_lacks_is_appended(tmp_path, kind):
    model, processor = trained(tmp_path, kind, LINES[:2])
    vocabulary = vocabulary_of(processor)
    before = len(vocabulary)
    piece = processor.encode("s", out_type=str)[-1]
    vocabulary.remove(piece)
    tokenizer = sentencepiece_tokenizer(model, vocabulary, SpecialTokens())
    assert vocabulary[before - 1 :] == [piece]
    assert tokenizer("s")["input_ids"][-2] == before - 1


def test_a_tag_of_a_language_is_one_id(tmp_path, kind):
    model, processor = trained(tmp_path, kind)
    vocabulary = [*vocabulary_of(processor), ">>fra<<"]
    tokenizer = sentencepiece_tokenizer(model, vocabulary, SpecialTokens())
    assert tokenizer(">>fra<< x")["input_ids"] == [len(vocabulary) - 1, *tokenizer("x")["input_ids"]]


def test_it_is_an_ordinary_fast_tokenizer(tmp_path, kind):
    model, processor = trained(tmp_path, kind)
    tokenizer = sentencepiece_tokenizer(model, vocabulary_of(processor), SpecialTokens())
    tokenizer.save_pretrained(tmp_path / "saved")
    opened = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert opened.is_fast
    for line in LINES:
        assert opened(line)["input_ids"] == tokenizer(line)["input_ids"]


@pytest.mark.parametrize("content", [b"", b"no model", b"\x0a\xff\x01"])
def test_what_is_no_model_is_one_line(tmp_path, content):
    (tmp_path / "x.spm").write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.spm (is no SentencePiece model|must be a SentencePiece model)"):
        read_sentencepiece(tmp_path / "x.spm")
    with pytest.raises(FileNotFoundError, match=r"y\.spm does not exist"):
        read_sentencepiece(tmp_path / "y.spm")


# A run's own SentencePiece model: `tokenizer.path`


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("options", [{}, {"byte_fallback": True, "normalization_rule_name": "identity"}], ids=str)
def test_ids_are_sentencepieces_own_on_lines_of_every_script(tmp_path, kind, options, form):
    """The other causes are those that docs/reference.md names."""
    lines = equality.lines_of_every_script(1500, form)
    path = equality.train(tmp_path / "own.model", kind, options, lines)
    found = equality.compare(path, [*LINES, *lines])
    assert not found[equality.OTHER], ascii(found[equality.OTHER][0])
    assert len(found[equality.EQUAL]) > 0.99 * len(lines)


@pytest.mark.slow
@pytest.mark.parametrize("options", equality.MODELS, ids=str)
def test_ids_are_sentencepieces_own_on_ten_thousand_lines(tmp_path, kind, options):
    path = equality.train(tmp_path / "own.model", kind, options, equality.lines_of_every_script(equality.NUMBER))
    for form in ("NFC", "NFD"):
        found = equality.compare(path, equality.lines_of_every_script(equality.NUMBER, form))
        print(form, {cause: len(lines) for cause, lines in found.items()})
        assert not found[equality.OTHER], ascii(found[equality.OTHER][0])
        assert len(found[equality.EQUAL]) > 0.99 * equality.NUMBER


@pytest.mark.parametrize(
    "text",
    [
        "½\u0323",
        "™\ufe0f",
        "\u1112\u1161\u11ab",
        "ㅋㅠ",
        "e\u0302\u0301",
        "\u0628\u0651\u064e",
        "ｶ\uff9e",
        "x\u0301\u0323",
    ],
    ids=ascii,
)
def test_a_grapheme_is_normalised_as_sentencepiece_does(tmp_path, text):
    model, processor = trained(tmp_path, "unigram", add_dummy_prefix=False)
    tokenizer: Any = sentencepiece_tokenizer(model, vocabulary_of(processor), SpecialTokens())
    assert tokenizer.backend_tokenizer.normalizer.normalize_str(text) == processor.normalize(text)


@pytest.mark.parametrize(
    ("options", "pad", "bos", "size"),
    [
        ({}, "<s>", "<s>", 0),
        ({"pad_id": 3}, "<pad>", "<s>", 0),
        ({"pad_id": 3, "pad_piece": "[PAD]", "bos_piece": "[BOS]"}, "[PAD]", "[BOS]", 0),
        ({"pad_id": 3, "bos_id": -1}, "<pad>", "<pad>", 0),
        ({"bos_id": -1}, "<pad>", "<pad>", 1),
    ],
    ids=str,
)
def test_padding_and_start_are_the_models_or_one_stands_for_both(tmp_path, kind, options, pad, bos, size):
    if options.get("bos_id") == -1:
        options = options | {"unk_id": 0, "eos_id": 1, "pad_id": 2 if "pad_id" in options else -1}
    path = train_sentencepiece(tmp_path / "own.model", LINES[:5], kind, vocab_size=200, **options)
    processor, tokenizer = sentencepiece.SentencePieceProcessor(str(path)), open_sentencepiece(path)
    assert (tokenizer.pad_token, tokenizer.bos_token, tokenizer.eos_token) == (pad, bos, "</s>")
    assert len(tokenizer) == processor.get_piece_size() + size
    assert tokenizer(LINES[0])["input_ids"] == [*processor.encode(LINES[0]), processor.eos_id()]
    assert tokenizer.pad_token_id not in tokenizer(f"{pad} {bos}")["input_ids"]


def test_a_run_learns_with_two_sentencepiece_models(tiny_run, kind):
    paths = {}
    for side in ("source", "target"):
        lines = (tiny_run.folder / f"train.{side}").read_text("utf-8").splitlines()
        size = 20 if side == "source" else 22
        paths[side] = train_sentencepiece(tiny_run.folder / f"{side}.model", lines, kind, vocab_size=size)
    options = [
        "tokenizer.shared=false",
        f"tokenizer.path={paths['source']}",
        f"tokenizer.target_path={paths['target']}",
    ]
    run = tiny_run.train(*options, *tiny_run.validation(), "training.max_updates=2")
    config = run.state.bare_model().config
    sizes = [sentencepiece.SentencePieceProcessor(str(path)).get_piece_size() for path in paths.values()]
    assert [config.vocab_size, config.decoder_vocab_size] == sizes
    assert (config.pad_token_id, config.decoder_start_token_id, config.eos_token_id) == (1, 1, 2)
    opened = AutoTokenizer.from_pretrained(run.output_dir / "model")
    assert opened("a b")["input_ids"] == [*sentencepiece.SentencePieceProcessor(str(paths["source"])).encode("a b"), 2]


def test_a_model_that_marks_the_ends_of_words_is_refused(tmp_path, kind):
    path = train_sentencepiece(tmp_path / "x.model", LINES[:3], kind, 200, treat_whitespace_as_suffix=True)
    with pytest.raises(ValueError, match=r"x\.model has treat_whitespace_as_suffix, which no fast tokenizer has"):
        open_sentencepiece(path)


@pytest.mark.parametrize(("file", "said"), [("no.model", "does not exist"), ("bad.spm", "is no SentencePiece model")])
def test_a_path_that_is_no_sentencepiece_model_is_one_line(tiny_run, file, said):
    (tiny_run.folder / "bad.spm").write_bytes(b"no model")
    with pytest.raises((ValueError, FileNotFoundError), match=said) as error:
        tiny_run.train(f"tokenizer.path={tiny_run.folder / file}")
    assert "\n" not in str(error.value)
