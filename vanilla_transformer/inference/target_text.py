# SPDX-License-Identifier: Apache-2.0
"""The text of a target: its whole words, and the bytes that each token adds to it."""

import re
from functools import cache
from typing import Any

from transformers.convert_slow_tokenizer import bytes_to_unicode

from vanilla_transformer.data.tokenizer_class import TARGET_TOKENIZER

# A letter or digit of a script that puts spaces between words; the ranges are Thai to Lao, Burmese, Khmer, kana, Han.
LETTER = r"[^\W\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]"
IS_LETTER = re.compile(LETTER).match
BYTES = {character: bytes([byte]) for byte, character in bytes_to_unicode().items()}  # byte-level tokens have these


def is_whole_word(text: str, start: int, end: int) -> bool:
    """Whether no letter touches a letter at the edges of `text[start:end]`."""
    return not (
        (start > 0 and IS_LETTER(text[start]) and IS_LETTER(text[start - 1]))
        or (end < len(text) and IS_LETTER(text[end - 1]) and IS_LETTER(text[end]))
    )


def occurrences(words: str, text: str) -> int:
    """How often the text has these words, as whole words; occurrences do not overlap."""
    count, start = 0, text.find(words)
    while start >= 0:
        end = start + len(words)
        is_whole = is_whole_word(text, start, end)
        count += is_whole
        start = text.find(words, end if is_whole else start + 1)
    return count


class TokenBytes(dict[int, bytes]):
    """The bytes that each token of the target adds to the text, looked up once; special tokens add none."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = getattr(tokenizer, TARGET_TOKENIZER, None) or tokenizer
        self.special = set(self.tokenizer.all_special_ids)
        decoder = getattr(getattr(self.tokenizer, "backend_tokenizer", None), "decoder", None)
        self.is_byte_level = "ByteLevel" in repr(decoder)
        self.encode = cache(self._encode)  # lines have many terms in common
        self.before = self.encode("a")[-1:]

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer(text_target=text, add_special_tokens=False)["input_ids"]

    def __missing__(self, token: int) -> bytes:
        if token in self.special:
            value = b""
        elif self.is_byte_level:
            characters = self.tokenizer.convert_ids_to_tokens(token) or ""  # a model may have more rows than tokens
            value = b"".join(BYTES.get(character) or character.encode() for character in characters)
        else:  # between words, for the first word of a text may be decoded without its space
            before = self.tokenizer.decode(self.before)
            value = self.tokenizer.decode([*self.before, token]).removeprefix(before).encode()
        self[token] = value
        return value
