# SPDX-License-Identifier: Apache-2.0
"""Whole words and bytes of a target's text."""

import random
import re

from tests.families import END
from vanilla_transformer.data.tokenizer import TokenizerConfig, train_tokenizer
from vanilla_transformer.inference.target_text import LETTER, TokenBytes, occurrences


def test_occurrences_are_those_of_a_regular_expression():
    draws = random.Random(7)
    letters = re.compile(LETTER).fullmatch
    for _ in range(2000):
        text = "".join(draws.choices("ab東 -", k=draws.randint(0, 12)))
        words = "".join(draws.choices("ab東 -", k=draws.randint(1, 3)))
        before = f"(?<!{LETTER})" if letters(words[0]) else ""
        after = f"(?!{LETTER})" if letters(words[-1]) else ""
        assert occurrences(words, text) == len(re.findall(f"{before}{re.escape(words)}{after}", text)), (words, text)


def test_bytes_of_tokens_are_those_of_the_text():
    text = "Zürich … „东京“ {0}"
    token_bytes = TokenBytes(
        train_tokenizer(["The black cat of Zürich … „Zürich“ {0}"] * 3, TokenizerConfig(vocab_size=300))
    )
    assert b"".join(token_bytes[token] for token in token_bytes.encode(text)).decode() == text
    assert token_bytes[END] == b""
