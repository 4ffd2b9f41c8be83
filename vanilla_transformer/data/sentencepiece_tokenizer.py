# SPDX-License-Identifier: Apache-2.0
"""A SentencePiece model as an ordinary fast tokenizer, with its own ids or those of a toolkit's vocabulary."""

import re
import struct
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from vanilla_transformer.data.special_tokens import SpecialTokens, append_missing, fast_tokenizer, without_names
from vanilla_transformer.data.tokenizer_class import VanillaTransformerTokenizer

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6  # types of pieces
UNIGRAM, BPE = 1, 2  # types of models
SPACE = "▁"
# Beside marks, the characters that extend a grapheme (Unicode Standard Annex 29).
EXTENDERS = "\n\u200c\u200d\u0e33\u0eb3\uff9e\uff9f\U0001f3fb-\U0001f3ff\U000e0020-\U000e007f"
IN_ORDER, APART = "\ufdd0", "\ufdd1"  # noncharacters, which no text has
NAMES = {46: b"<s>", 47: b"</s>", 48: b"<pad>"}  # bos, eos and pad: number in the proto, default
UNK_PENALTY = 10.0  # SentencePiece's: an unknown character has the lowest score less this


@dataclass
class SentencePieceModel:
    """The fields of sentencepiece_model.proto that decide how text is split; their defaults are the proto's."""

    pieces: list[tuple[str, float, int]] = field(default_factory=list)  # text, score, type
    model_type: int = UNIGRAM
    byte_fallback: bool = False
    charsmap: bytes = b""
    add_dummy_prefix: bool = True
    remove_extra_whitespaces: bool = True
    bos: str = "<s>"
    eos: str = "</s>"
    pad: str = "<pad>"


def read_sentencepiece(path: Path) -> SentencePieceModel:
    """Read a .model or .spm file: a protocol buffer, which this reads without its library.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is no SentencePiece model, one of words or characters, or one that marks the ends of words.
    """
    if not path.is_file():
        raise FileNotFoundError(f"SentencePiece model {path} does not exist")
    model, has_suffixes = SentencePieceModel(), False
    try:
        for number, value in _fields(path.read_bytes()):
            if number == 1:
                piece = dict(_fields(value))
                score = struct.unpack("<f", piece[2])[0] if 2 in piece else 0.0
                model.pieces.append((piece[1].decode(), score, piece.get(3, NORMAL)))
            elif number == 2:
                trainer = dict(_fields(value))
                model.model_type, model.byte_fallback = trainer.get(3, UNIGRAM), bool(trainer.get(35, 0))
                has_suffixes = bool(trainer.get(24, 0))
                names = (trainer.get(number, default) for number, default in NAMES.items())
                model.bos, model.eos, model.pad = (name.decode() for name in names)
            elif number == 3:
                normalizer = dict(_fields(value))
                model.charsmap = normalizer.get(2, b"")
                model.add_dummy_prefix = bool(normalizer.get(3, 1))
                model.remove_extra_whitespaces = bool(normalizer.get(4, 1))
    except (IndexError, KeyError, TypeError, UnicodeDecodeError, struct.error) as error:
        raise ValueError(f"{path} is no SentencePiece model, or it is damaged") from error
    if not model.pieces or model.model_type not in (UNIGRAM, BPE):
        raise ValueError(f"{path} must be a SentencePiece model of type unigram or bpe with at least one piece")
    if has_suffixes:
        raise ValueError(f"{path} has treat_whitespace_as_suffix, which no fast tokenizer has; train it without")
    return model


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """(number, an integer or bytes) of each field of a message in the wire format of protocol buffers."""
    position = 0

    def varint() -> int:
        nonlocal position
        result = shift = 0
        while True:
            byte = data[position]
            position += 1
            result |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return result

    while position < len(data):
        key = varint()
        kind = key & 7
        if kind == 0:
            yield key >> 3, varint()
            continue
        length = {1: lambda: 8, 2: varint, 5: lambda: 4}[kind]()
        if position + length > len(data):
            raise IndexError("a field ends after the message")
        position += length
        yield key >> 3, data[position - length : position]


def open_sentencepiece(path: Path) -> VanillaTransformerTokenizer:
    """The tokenizer of a SentencePiece model, with SentencePiece's own ids; `</s>` ends a text.

    Where the model has no `<pad>`, `<s>` pads, which is in no text; where it has no `<s>`, its padding begins targets.
    A token that it lacks altogether comes after its own.

    Raises:
        FileNotFoundError, ValueError: as `read_sentencepiece`; a model without an unknown piece.
    """
    model = read_sentencepiece(path)
    vocabulary = [text for text, _, _ in model.pieces]
    control = {text for text, _, kind in model.pieces if kind == CONTROL}
    unknown = [text for text, _, kind in model.pieces if kind == UNKNOWN]
    if len(unknown) != 1:
        raise ValueError(f"{path} is damaged: it has {len(unknown)} unknown pieces, not one")
    begins = [name for name in (model.bos, model.pad) if name in control] or [model.pad]
    special = SpecialTokens(pad=begins[-1], bos=begins[0], eos=model.eos, unk=unknown[0])
    append_missing(vocabulary, special.names())
    return sentencepiece_tokenizer(model, vocabulary, special)


def sentencepiece_tokenizer(
    model: SentencePieceModel, vocabulary: list[str], special: SpecialTokens
) -> VanillaTransformerTokenizer:
    """A tokenizer that splits as `model` does, and gives the ids of `vocabulary`.

    Pieces that the vocabulary lacks are appended to it: the toolkit reads them as the unknown token.

    Args:
        vocabulary: tokens in the order of their ids, those of another SentencePiece model perhaps among them.

    Raises:
        ValueError: a special token that the vocabulary lacks.
    """
    scores = {text: score for text, score, kind in model.pieces if kind in (NORMAL, USER_DEFINED)}
    own = dict(scores)
    user_defined = [text for text, _, kind in model.pieces if kind == USER_DEFINED]
    byte_pieces = {text for text, _, kind in model.pieces if kind == BYTE} if model.byte_fallback else set()
    append_missing(vocabulary, [*scores, *byte_pieces])
    # The toolkits look up a character that the model does not know in the vocabulary. Its score is that of the unknown.
    lowest = min(scores.values(), default=0.0) - UNK_PENALTY
    scores |= dict.fromkeys((token for token in vocabulary if len(token) == 1 and token not in scores), lowest)
    # Another token that the model lacks (the target's, a special one) is in no text: normalised text has no space.
    known = {*scores, *byte_pieces, *special.names(), *special.tags(vocabulary)}
    names = [token if token in known else f" {token}" for token in vocabulary]
    unknown = vocabulary.index(special.unk)
    if model.model_type == UNIGRAM:
        pairs = [(name, scores.get(name, 0.0)) for name in names]
        tokenizer = Tokenizer(models.Unigram(pairs, unk_id=unknown, byte_fallback=bool(byte_pieces)))
    else:
        ids = {name: index for index, name in enumerate(names)}
        merges = _merges(own, set(user_defined))
        options = {"unk_token": special.unk, "fuse_unk": True, "byte_fallback": bool(byte_pieces)}
        tokenizer = Tokenizer(models.BPE(ids, merges, ignore_merges=bool(user_defined), **options))
    tokenizer.normalizer = _normalizer(model)
    steps: list = [pre_tokenizers.Metaspace(SPACE, "always", split=False)] if model.add_dummy_prefix else []
    if user_defined:  # emitted whole, never merged
        pattern = "|".join(re.escape(piece) for piece in sorted(user_defined, key=len, reverse=True))
        steps.append(pre_tokenizers.Split(Regex(pattern), "isolated"))
    if model.model_type == UNIGRAM:
        steps.append(without_names(special, own))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    decoding: list = [decoders.Replace(" ", ""), decoders.Replace(SPACE, " ")]
    if byte_pieces:
        decoding.append(decoders.ByteFallback())
    decoding.append(decoders.Fuse())
    if model.add_dummy_prefix:
        decoding.append(decoders.Strip(" ", 1, 0))
    tokenizer.decoder = decoders.Sequence(decoding)
    return fast_tokenizer(tokenizer, vocabulary, special)


def _normalizer(model: SentencePieceModel) -> normalizers.Normalizer:
    """In SentencePiece's order, as transformers converts it (`build_tokenizer_from_spm_proto`)."""
    steps: list[normalizers.Normalizer] = []
    if model.charsmap:
        steps += _charsmap(model.charsmap)
    if model.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex(r"\A +| +\z"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    steps.append(normalizers.Replace(" ", SPACE))
    if model.add_dummy_prefix:  # Metaspace adds none to a text that begins with "▁"
        steps.append(normalizers.Replace(Regex(rf"\A{SPACE}"), SPACE * 2))
    return normalizers.Sequence(steps)


def _charsmap(charsmap: bytes) -> list[normalizers.Normalizer]:
    """SentencePiece's rules as it applies them: to the longest match, not within a grapheme as `Precompiled` does.

    `Precompiled` drops the marks of a letter that it replaces, and composes no grapheme of six bytes or more (Korean
    and Vietnamese in NFD). So NFC composes, before the rules and after them, and the rules see each mark alone.
    SentencePiece reorders no marks, as NFC would: a noncharacter before a mark keeps it where it is.
    """
    rules = normalizers.Precompiled(charsmap)
    if rules.normalize_str("e\u0301") != "é":  # rules of the model's own, which compose nothing
        return [rules]
    marks, below = _composing_marks()
    unordered = rf"(?<=[\s\S])(?=\p{{M}})(?![{marks}])|(?<=\p{{M}})(?<![{below}])(?=[{below}])"
    joins = rf"(?<=[\s\S])(?=[\p{{M}}{EXTENDERS}])"
    return [
        normalizers.Replace(Regex(unordered), IN_ORDER),
        normalizers.NFC(),
        normalizers.Replace(Regex(joins), APART),
        rules,
        normalizers.Replace(APART, ""),
        normalizers.NFC(),
        normalizers.Replace(IN_ORDER, ""),
    ]


@cache
def _composing_marks() -> tuple[str, str]:
    """The marks that compose, and those among them that Unicode orders before the marks above a letter."""
    codes = (*range(0xC0, 0xAC00), *range(0x11000, 0x12000))
    decomposed = {unicodedata.normalize("NFD", chr(code)) for code in codes}
    composing = "".join(text for text in decomposed if len(unicodedata.normalize("NFC", text)) == 1 < len(text))
    marks = sorted(mark for mark in set(composing) if unicodedata.category(mark).startswith("M"))
    return "".join(marks), "".join(mark for mark in marks if unicodedata.combining(mark) < 230)


def _merges(scores: dict[str, float], user_defined: set[str]) -> list[tuple[str, str]]:
    """SentencePiece has no list of merges: it merges the pair whose result has the best score."""
    normal = {text: (-score, rank) for rank, (text, score) in enumerate(scores.items()) if text not in user_defined}
    ranked = [
        (*order, text[:cut], text[cut:])
        for text, order in normal.items()
        for cut in range(1, len(text))
        if text[:cut] in normal and text[cut:] in normal
    ]
    return [(left, right) for _, _, left, right in sorted(ranked)]
