# SPDX-License-Identifier: Apache-2.0
"""Batch invariance of int8 in PyTorch: a line's translation does not depend on the other lines of its batch.

The products are bitwise batch-invariant (tests/test_packed_linear.py). Attention over a padded source may add up in
another order, and where its last bit decides between two levels of int8, the scores of that line move: it is rare.
"""

import random

import pytest

from tests.families import END, FAMILIES, START, Family
from vanilla_transformer import Translator
from vanilla_transformer.data.tokenizer import TokenizerConfig, train_tokenizer
from vanilla_transformer.inference.native.engine import fast_decoder
from vanilla_transformer.inference.translate import Translation

SYMBOLS = [f"w{i}" for i in range(27)]
COUNT = 120


def translations(translator: Translator, lines: list[str], at_once: int) -> list[Translation]:
    found = translator.n_best(lines, 1, window=at_once, max_batch_tokens=100_000, max_new_tokens=12, num_beams=3)
    return [best[0] for best in found]


@pytest.mark.parametrize("family", [FAMILIES[0], FAMILIES[1], FAMILIES[2]], ids=lambda family: family.name)
def test_batch_invariance_of_nearly_every_line(family: Family):
    names = {"pad_token_id": 0, "bos_token_id": START, "eos_token_id": END, "decoder_start_token_id": START}
    model = family.model(**names)
    tokenizer = train_tokenizer([" ".join(SYMBOLS)], TokenizerConfig(kind="symbols"))
    translator = Translator(model, tokenizer, fast_decoder(model, "int8", "torch"))
    lines = [" ".join(random.choices(SYMBOLS, k=random.randint(1, 20))) for _ in range(COUNT)]
    alone = translations(translator, lines, 1)
    assert len({item.text for item in alone}) > 10  # or there is nothing to mix up
    order = random.sample(range(COUNT), COUNT)
    shuffled = dict(zip(order, translations(translator, [lines[i] for i in order], 64), strict=True))
    for found in (
        translations(translator, lines, 7),
        translations(translator, lines, 64),
        [shuffled[i] for i in range(COUNT)],
    ):
        pairs = list(zip(found, alone, strict=True))
        assert sum(pair.text != other.text for pair, other in pairs) <= COUNT / 20
        assert sum(pair.score != pytest.approx(other.score, abs=1e-4) for pair, other in pairs) <= COUNT / 3
