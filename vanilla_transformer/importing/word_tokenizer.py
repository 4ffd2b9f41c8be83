# SPDX-License-Identifier: Apache-2.0
"""Tokenizers of words separated by white space (subword-nmt's BPE, whole words), and of characters."""

import re
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from vanilla_transformer.data.special_tokens import SpecialTokens, append_missing, fast_tokenizer
from vanilla_transformer.data.tokenizer_class import VanillaTransformerTokenizer

CODES = ("bpecodes", "bpe.code", "bpe.codes", "code", "codes", "bpe.32k")  # usual names of files
END = "</w>"  # ends the last piece of a word in the codes
SPACE = "▁"
Merges = list[tuple[str, str]]


def read_codes(path: Path) -> Merges:
    """The merges of subword-nmt's codes, or of fastBPE's, best first.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a line that is no merge; version 0.1, whose words end otherwise.
    """
    if not path.is_file():
        raise FileNotFoundError(f"BPE codes {path} do not exist")
    lines = path.read_text(encoding="utf-8").split("\n")
    version = lines.pop(0).split()[-1] if lines and lines[0].startswith("#version") else "0.2"
    if version != "0.2":
        raise ValueError(f"{path} has version {version} of subword-nmt's codes; only 0.2 can be imported")
    merges = []
    for number, line in enumerate(lines, start=1):
        parts = line.split(" ")
        if line.strip() and (len(parts) not in (2, 3) or not all(parts)):
            raise ValueError(f"{path} is no file of BPE codes: line {number} is {line[:40]!r}, not two symbols")
        if line.strip():
            merges.append((parts[0], parts[1]))
    return list(dict.fromkeys(merges))


def subword_tokenizer(
    merges: Merges, vocabulary: list[str], special: SpecialTokens, joiner: str = "@@"
) -> VanillaTransformerTokenizer:
    """A tokenizer that splits words by the merges and gives the ids of `vocabulary`.

    Its input is text as the toolkit's BPE reads it: words and punctuation separated by spaces. A merge that leads to no
    token of the vocabulary is left out: such words are read in smaller pieces, where the toolkit reads `<unk>`. A
    symbol that the vocabulary lacks, and that becomes part of its tokens, is appended to it.

    Args:
        joiner: ends the pieces of a word but the last, "@@" in subword-nmt; empty: the last ends with `</w>`.
    """
    symbols = [_symbol(token, joiner, special) for token in vocabulary]
    useful, kept = set(symbols), []
    for left, right in reversed(merges):  # later merges use the results of earlier ones
        if left + right in useful:
            useful |= {left, right}
            kept.append((left, right))
    kept.reverse()
    # A single symbol is no result of a merge; within words it has no end.
    needed = [part for merge in kept for part in (*merge, "".join(merge))]
    append_missing(symbols, needed)
    vocabulary.extend(_token(symbol, joiner) for symbol in symbols[len(vocabulary) :])
    ids = {symbol: index for index, symbol in enumerate(symbols)}
    tokenizer = Tokenizer(models.BPE(ids, kept, unk_token=special.unk, end_of_word_suffix=END))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.BPEDecoder(END)
    return fast_tokenizer(tokenizer, symbols, special)


def _symbol(token: str, joiner: str, special: SpecialTokens) -> str:
    if not joiner or token in special.names():
        return token
    return token.removesuffix(joiner) if token.endswith(joiner) and token != joiner else token + END


def _token(symbol: str, joiner: str) -> str:
    if not joiner:
        return symbol
    return symbol.removesuffix(END) if symbol.endswith(END) else symbol + joiner


def words_tokenizer(vocabulary: list[str], special: SpecialTokens) -> VanillaTransformerTokenizer:
    """A tokenizer of whole words, separated by white space."""
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, special.unk))
    # A special token's name in a text is text: without its first character it is unknown.
    names = "|".join(f"{re.escape(name[0])}(?={re.escape(name[1:])}$)" for name in special.names())
    steps = [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex(f"^(?:{names})"), "removed")]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    return fast_tokenizer(tokenizer, vocabulary, special)


def characters_tokenizer(vocabulary: list[str], special: SpecialTokens):
    """A tokenizer of single characters, where "▁" stands for a space."""
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(vocabulary)}, special.unk))
    tokenizer.normalizer = normalizers.Replace(" ", SPACE)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Sequence([decoders.Fuse(), decoders.Replace(SPACE, " ")])
    return fast_tokenizer(tokenizer, vocabulary, special)
