# SPDX-License-Identifier: Apache-2.0
"""Ids and texts are those of SentencePiece itself."""

import pytest
import sentencepiece
from transformers import AutoTokenizer

from tests.importing.conftest import LINES, train_sentencepiece
from vanilla_transformer.data.sentencepiece_tokenizer import read_sentencepiece, sentencepiece_tokenizer
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
