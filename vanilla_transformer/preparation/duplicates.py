# SPDX-License-Identifier: Apache-2.0
"""Exact and near duplicates among all pairs, by hashes in files: memory is about 30 bytes a pair, and no text.

Near duplicates have similar MinHash signatures (Broder 1997) of their character 4-grams, of which rensa computes 128
hashes and 8 bits each are kept (b-bit minwise hashing; Li and König 2010). Pairs of which one of the 16 bands of 8
hashes is equal are compared; those with a similarity of 0.8 have one with probability 0.95, of 0.9 with 0.9999.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

BANDS, ROWS = 16, 8
HASHES = BANDS * ROWS
GRAM = 4  # characters
SEED = 1
PAIRS_AT_ONCE = 2_000  # rensa returns lists of integers
KEYS_AT_ONCE = 2**23  # sorted at a time
# Odd multipliers of a polynomial hash and of its finalizer (Fibonacci hashing; Stafford's mix).
MULTIPLIER, MIXER, HALF = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD6E8FEB86659FD93), np.uint64(32)

Pair = tuple[str, str]


def signatures(pairs: Sequence[Pair]) -> np.ndarray:
    """`(pairs, BANDS)`, 64 bits a band: signatures of the letters and digits of both sides, apart from capitals."""
    parts = [_signatures(pairs[start : start + PAIRS_AT_ONCE]) for start in range(0, len(pairs), PAIRS_AT_ONCE)]
    return np.concatenate([np.empty((0, BANDS), np.uint64), *parts])


def _signatures(pairs: Sequence[Pair]) -> np.ndarray:
    from rensa import RMinHash  # pyright: ignore[reportAttributeAccessIssue] -- a compiled module without types

    end = "\n" * (GRAM - 1)  # no 4-gram runs into the next text
    texts = [f"{source}{end}{target}{end}".casefold() for source, target in pairs]
    codes = np.frombuffer("".join(texts).encode("utf-32-le"), dtype=np.uint32)
    characters, places = np.unique(codes, return_inverse=True)
    kept = np.array([chr(code).isalnum() or code == 10 for code in characters.tolist()])[places]
    ends = np.cumsum(kept)[np.cumsum(np.fromiter(map(len, texts), np.int64, len(texts))) - 1]
    codes = codes[kept].astype(np.uint64)
    hashes = codes.copy()
    for shift in range(1, GRAM):
        hashes[:-shift] = hashes[:-shift] * MULTIPLIER + codes[shift:]
    hashes = (hashes ^ (hashes >> HALF)) * MIXER
    begins_text = codes != 10
    offsets = np.concatenate([[0], np.cumsum(begins_text)[ends - 1]]).astype(np.uint64)
    digests = RMinHash.digest_matrix_from_flat_token_hashes(hashes[begins_text], offsets, HASHES, SEED).to_rows()
    return np.array(digests, np.uint32).astype(np.uint8).view(np.uint64)


def find_duplicates(columns: Sequence[Path], exact: bool, threshold: float | None) -> tuple[np.ndarray, np.ndarray]:
    """Which pairs are exact, and which near duplicates of an earlier pair.

    A pair is compared with the first of those whose band is equal, and with the one before it: a chain of small
    changes is found, too.

    Args:
        columns: files of 64-bit integers, one a pair: the key of the pair, then each band of the signature.
        threshold: the least similarity; `None`: no near duplicates are sought.
    """
    key, *bands = columns
    pairs = key.stat().st_size // 8
    is_exact, is_near = np.zeros(pairs, bool), np.zeros(pairs, bool)
    for _, _, rows in _equal_keys(key) if exact else ():
        is_exact[rows] = True
    for band in bands if threshold is not None else ():
        for first, previous, rows in _equal_keys(band):
            for others in (first, previous):
                left = ~(is_exact[rows] | is_near[rows])
                candidates = rows[left]
                is_near[candidates[_similarity(bands, others[left], candidates) >= threshold]] = True
    return is_exact, is_near


def _equal_keys(column: Path) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(first, previous, pair): rows whose keys are equal, for every row that has an earlier one; some at a time."""
    keys = np.fromfile(column, np.uint64)
    parts = np.uint64(len(keys) // KEYS_AT_ONCE + 1)
    for part in range(int(parts)):
        rows = np.flatnonzero(keys % parts == part) if parts > 1 else np.arange(len(keys))
        rows = rows[np.argsort(keys[rows], kind="stable")]
        is_equal = keys[rows[1:]] == keys[rows[:-1]]
        begins = np.concatenate([[True], ~is_equal])[: len(rows)]
        first = rows[np.maximum.accumulate(np.where(begins, np.arange(len(rows)), 0))]
        yield first[1:][is_equal], rows[:-1][is_equal], rows[1:][is_equal]


def _similarity(bands: Sequence[Path], first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Jaccard similarity by the share of equal hashes, without those of 8 bits that are equal by chance."""
    if not len(first):
        return np.empty(0)
    equal = np.zeros(len(first), np.int64)
    for band in bands:
        keys = np.memmap(band, np.uint64, mode="r")
        equal += (keys[first].view(np.uint8) == keys[second].view(np.uint8)).reshape(-1, ROWS).sum(1)
    return (equal / HASHES - 1 / 256) / (1 - 1 / 256)
