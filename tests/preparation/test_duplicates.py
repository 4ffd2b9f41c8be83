# SPDX-License-Identifier: Apache-2.0
"""Signatures against Jaccard similarities of sets, and duplicates against a search of all pairs."""

import random
from pathlib import Path

import numpy as np
import pytest

from tests.preparation.planted import clean_pair
from vanilla_transformer.preparation import duplicates
from vanilla_transformer.preparation.duplicates import BANDS, HASHES, _similarity, find_duplicates, signatures


def grams(pair: tuple[str, str]) -> set[str]:
    """4-grams of letters and digits, with line ends after the text."""
    texts = ["".join(filter(str.isalnum, text.casefold())) for text in pair]
    return {f"{text}\n\n\n"[place : place + 4] for text in texts for place in range(len(text))}


def jaccard(first: tuple[str, str], second: tuple[str, str]) -> float:
    one, other = grams(first), grams(second)
    return len(one & other) / len(one | other)


def write_columns(folder: Path, keys: np.ndarray, bands: np.ndarray) -> list[Path]:
    paths = [folder / str(number) for number in range(1 + BANDS)]
    for path, column in zip(paths, [keys, *bands.T], strict=True):
        column.astype(np.uint64).tofile(path)
    return paths


def spoilt(pair: tuple[str, str], changes: int, draws: random.Random) -> tuple[str, str]:
    letters = list(pair[0])
    for place in draws.sample(range(len(letters)), changes):
        letters[place] = draws.choice("bcdfghjk")
    return "".join(letters), pair[1]


def test_similarity_estimates_jaccard(tmp_path: Path):
    draws = random.Random(1)
    firsts = [clean_pair(draws) for _ in range(300)]
    seconds = [spoilt(pair, draws.randrange(20), draws) for pair in firsts]
    bands = signatures(firsts + seconds)
    paths = write_columns(tmp_path, np.arange(600), bands)[1:]
    found = _similarity(paths, np.arange(300), np.arange(300, 600))
    expected = np.array([jaccard(first, second) for first, second in zip(firsts, seconds, strict=True)])
    assert expected.min() < 0.6
    # 8 bits are equal by chance in one of 256 hashes that differ.
    deviation = np.sqrt(expected * (1 - expected) / HASHES) + 0.005
    assert (np.abs(found - expected) < 5 * deviation).all()
    assert abs((found - expected).mean()) < 0.01


def test_signatures_do_not_depend_on_neighbours(monkeypatch: pytest.MonkeyPatch):
    draws = random.Random(2)
    pairs = [("a", "b"), *(clean_pair(draws) for _ in range(50)), ("字", "1")]
    together = signatures(pairs)
    monkeypatch.setattr(duplicates, "PAIRS_AT_ONCE", 7)
    assert (signatures(pairs) == together).all()
    assert all((signatures([pair])[0] == row).all() for pair, row in zip(pairs, together, strict=True))
    assert signatures([]).shape == (0, BANDS)


@pytest.mark.parametrize("keys_at_once", [2**23, 40])
def test_duplicates_by_comparing_all_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keys_at_once: int):
    monkeypatch.setattr(duplicates, "KEYS_AT_ONCE", keys_at_once)
    draws = random.Random(3)
    pairs = [clean_pair(draws) for _ in range(200)]
    pairs += [spoilt(draws.choice(pairs), 1, draws) for _ in range(50)] + draws.sample(pairs, 50)
    keys = np.array([hash(pair) % 2**62 for pair in pairs])
    columns = write_columns(tmp_path, keys, signatures(pairs))
    is_exact, is_near = find_duplicates(columns, exact=True, threshold=0.8)
    assert is_exact.tolist() == [pair in pairs[:place] for place, pair in enumerate(pairs)]
    best = [max([jaccard(pair, other) for other in pairs[:place]], default=0) for place, pair in enumerate(pairs)]
    assert is_near[[0.9 < similarity < 1 for similarity in best]].all()
    assert not is_near[[similarity < 0.6 for similarity in best]].any()
    assert not (is_exact & is_near).any()
    for exact, threshold in ((True, None), (False, None)):
        found = find_duplicates(columns, exact, threshold)
        assert (found[0] == (is_exact & exact)).all()
        assert not found[1].any()
