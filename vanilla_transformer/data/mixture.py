# SPDX-License-Identifier: Apache-2.0
"""Several corpora in one: how often an epoch shows the pairs of each, and which of them; streams by their shares."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from huggingface_hub.dataclasses import strict

from vanilla_transformer.data.corpus import CorpusConfig
from vanilla_transformer.data.tokenized_pairs import DroppedPairs

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedTokenizerBase

# A pass over more pairs permutes runs of neighbours: so many numbers of 8 bytes are held for a corpus of any size.
MAX_RUNS = 2**20


@strict
@dataclass(kw_only=True)
class NamedCorpusConfig(CorpusConfig):
    """A corpus of a list.

    Args:
        name: in messages and scores.
        tag: a token before each source, such as "<bt>" or "<2de>". It is one id, which no text gives.
        target_tag: a token that each target begins with, as translations into its language then do.

    Raises:
        ValueError: a name with other characters than letters, digits and .+-_; a tag that is empty or has white space.
    """

    name: str
    tag: str | None = None
    target_tag: str | None = None

    def __post_init__(self):
        super().__post_init__()
        if not re.fullmatch(r"[\w.+-]+", self.name):
            raise ValueError(f"name={self.name!r} of a corpus must be of letters, digits and the signs . + - _")
        for key in ("tag", "target_tag"):
            tag = getattr(self, key)
            if tag is not None and not re.fullmatch(r"\S+", tag):
                raise ValueError(f"{key}={tag!r} of corpus {self.name!r} must have characters, and no white space")


@strict
@dataclass(kw_only=True)
class MixedCorpusConfig(NamedCorpusConfig):
    """A training corpus of a list.

    Args:
        weight: how many times an epoch shows each pair: 2 each twice; 0.5 half of the pairs, and the next epoch the
            other half; `None`: once. For streams, whose sizes nobody knows, the share of its pairs among all, relative
            to the other weights, and required.

    Raises:
        ValueError: a weight that is not greater than 0 and finite; as `NamedCorpusConfig`.
    """

    weight: float | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.weight is not None and not 0 < self.weight < np.inf:
            raise ValueError(f"weight={self.weight} of corpus {self.name!r} must be greater than 0, and finite")


def by_place(place: str, corpora: CorpusConfig | Sequence[NamedCorpusConfig] | None) -> dict[str, CorpusConfig]:
    """One corpus or a list by the places in the configuration: `data.train`, or `data.train[name]` for each."""
    if corpora is None:
        return {}
    return {place: corpora} if isinstance(corpora, CorpusConfig) else {f"{place}[{c.name}]": c for c in corpora}


def by_name(name: str, corpora: CorpusConfig | Sequence[NamedCorpusConfig] | None) -> dict[str, CorpusConfig]:
    """A list by the names of its corpora, or one corpus by the given name."""
    places = by_place(name, corpora)
    return {corpus.name if isinstance(corpus, NamedCorpusConfig) else name: corpus for corpus in places.values()}


def check_list(place: str, corpora: CorpusConfig | Sequence[NamedCorpusConfig] | None) -> None:
    """Raise ValueError for a list without a corpus, or with a name twice."""
    if corpora is None or isinstance(corpora, CorpusConfig):
        return
    names = [corpus.name for corpus in corpora]
    if not names:
        raise ValueError(f"{place}=[] must have at least one corpus")
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"{place} has two corpora with name={twice!r}; give each a name of its own")


def check_mixture(
    place: str, corpora: CorpusConfig | Sequence[MixedCorpusConfig] | None, temperature: float | None
) -> None:
    """Raise ValueError for training corpora, or a temperature, that cannot be mixed."""
    check_list(place, corpora)
    if corpora is None or isinstance(corpora, CorpusConfig):
        if temperature is not None:
            raise ValueError(f"data.temperature={temperature} mixes a list of corpora, and {place} is none")
        return
    streams = {corpus.name for corpus in corpora if corpus.streaming}
    if streams and len(streams) < len(corpora):
        other = next(corpus.name for corpus in corpora if not corpus.streaming)
        raise ValueError(f"{place}: {min(streams)!r} is a stream and {other!r} is not; set streaming for all or none")
    if temperature is not None and streams:
        raise ValueError(
            f"data.temperature={temperature} needs the corpora's sizes, and streams have none; set weights"
        )
    for corpus in corpora:
        if temperature is not None and corpus.weight is not None:
            raise ValueError(
                f"data.temperature={temperature} and weight={corpus.weight} of corpus {corpus.name!r} both decide how "
                "often it is shown; give one of them"
            )
        if streams and corpus.weight is None:
            raise ValueError(f"{place}[{corpus.name}].weight is missing: a stream is shown by its share of all pairs")


def pairs_per_epoch(
    sizes: Mapping[str, int], weights: Sequence[float | None], temperature: float | None = None
) -> list[int]:
    """The pairs of each corpus in an epoch: weight times size; by temperature T, shares in proportion to size^(1/T).

    With a temperature an epoch has as many pairs as the corpora together (Arivazhagan et al. 2019, arXiv:1907.05019).

    Raises:
        ValueError: a corpus would have none.
    """
    counts = np.array(list(sizes.values()), dtype=np.float64)
    if temperature is None:
        shown = [
            round(size * (1.0 if weight is None else weight)) for size, weight in zip(counts, weights, strict=True)
        ]
    else:
        shares = counts ** (1 / temperature)
        ends = np.rint(np.cumsum(shares / shares.sum()) * counts.sum()).astype(np.int64)
        shown = np.diff(ends, prepend=0).tolist()
    for place, pairs in zip(sizes, shown, strict=True):
        if pairs < 1:
            raise ValueError(f"{place}: an epoch would show none of its {sizes[place]:,} pairs; raise its weight")
    return shown


class Mixture:
    """Which rows of corpora that stand one after another an epoch shows: a function of (seed, epoch) alone.

    Each corpus is read pass after pass, from epoch to epoch: a pass is a permutation of all its pairs, so that none
    comes again before all have come. A pass that lies within an epoch has no need of a permutation, as batches shuffle.

    Args:
        sizes: pairs of each corpus, by its place in the configuration.
        shown: as `pairs_per_epoch` gives them.
    """

    def __init__(self, sizes: Mapping[str, int], shown: Sequence[int], seed: int):
        self.sizes, self.shown, self.seed = dict(sizes), list(shown), seed
        self.pairs = sum(self.shown)

    def rows(self, epoch: int, positions: np.ndarray) -> np.ndarray:
        """The rows at these positions of the epoch, each from 0 to `pairs` - 1; neighbours often stay neighbours."""
        rows, begin, offset = np.empty_like(positions), 0, 0
        for corpus, (size, shown) in enumerate(zip(self.sizes.values(), self.shown, strict=True)):
            inside = (positions >= begin) & (positions < begin + shown)
            first, last = epoch * shown, (epoch + 1) * shown  # counted over all epochs
            passes, places = np.divmod(positions[inside] - begin + first, size)
            for number in {first // size, last // size}:  # the others lie within the epoch
                is_in_pass = passes == number
                if (number * size < first or (number + 1) * size > last) and is_in_pass.any():
                    places[is_in_pass] = self._permuted(corpus, number, size, places[is_in_pass])
            rows[inside] = places + offset
            begin, offset = begin + shown, offset + size
        return rows

    def _permuted(self, corpus: int, number: int, size: int, places: np.ndarray) -> np.ndarray:
        run = -(-size // MAX_RUNS)
        order = np.random.default_rng((self.seed, corpus, number, 0)).permutation(size // run)
        whole = places < len(order) * run  # fewer pairs than a run, at the end, stay where they are
        return np.where(whole, order[np.where(whole, places // run, 0)] * run + places % run, places)

    def __str__(self) -> str:
        parts = [
            f"{place} {shown:,} of {size:,} ({shown / self.pairs:.1%})"
            if shown < size
            else f"{place} {shown:,}, each of {size:,} {shown / size:.4g} times ({shown / self.pairs:.1%})"
            for (place, size), shown in zip(self.sizes.items(), self.shown, strict=True)
        ]
        return f"an epoch has {self.pairs:,} pairs: {'; '.join(parts)}"


class InterleavedStreams:
    """Several streams as one: always a pair of the stream that is furthest behind its share.

    `datasets.interleave_datasets` draws at random, the same draws in every epoch; its proportions are not exact. An
    epoch ends as soon as every stream has been read through; shorter streams begin again, in another order.

    Args:
        streams: pairs, by place in the configuration; the same in each process.
        shares: relative to one another.

    Raises:
        ValueError: while iterating: a stream has no pair.
    """

    def __init__(self, streams: "Mapping[str, datasets.IterableDataset]", shares: Sequence[float]):
        self.streams, self.shares, self.epoch = dict(streams), list(shares), 0

    def shuffle(self, seed: int, buffer_size: int) -> "InterleavedStreams":
        """Each with a buffer of its own."""
        shuffled = {place: stream.shuffle(seed=seed, buffer_size=buffer_size) for place, stream in self.streams.items()}
        return InterleavedStreams(shuffled, self.shares)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[dict[str, Any]]:
        places, streams = list(self.streams), list(self.streams.values())
        passes, shown, unfinished = [0] * len(streams), [0] * len(streams), set(range(len(streams)))
        readers = [self._read(stream, 0) for stream in streams]
        while True:
            i = min(range(len(streams)), key=lambda i: (shown[i] + 0.5) / self.shares[i])
            row = next(readers[i], None)
            if row is None:
                unfinished.discard(i)
                if not shown[i]:
                    raise ValueError(f"{places[i]} has no pair to train on: all are empty, too long, or missing")
                if not unfinished:
                    return
                passes[i] += 1
                readers[i] = self._read(streams[i], passes[i])
                row = next(readers[i])
            shown[i] += 1
            yield row

    def _read(self, stream: "datasets.IterableDataset", number: int) -> Iterator[dict[str, Any]]:
        stream.set_epoch(self.epoch + (number << 32))  # another order in each pass
        yield from stream

    def __str__(self) -> str:
        whole = sum(self.shares)
        parts = [f"{place} {share / whole:.1%}" for place, share in zip(self.streams, self.shares, strict=True)]
        return f"an epoch ends when every stream has been read through once; of its pairs: {'; '.join(parts)}"


@dataclass
class DroppedByCorpus:
    """Counts of `prepare_pairs` for several corpora, by place in the configuration."""

    corpora: dict[str, DroppedPairs]

    def __str__(self) -> str:
        return "; ".join(f"{place}: {dropped}" for place, dropped in self.corpora.items())


def tags_of(corpus: CorpusConfig) -> dict[str, str]:
    """The corpus's tags, by the column of tokens that they come first in."""
    if not isinstance(corpus, NamedCorpusConfig):
        return {}
    tags = {"input_ids": corpus.tag, "labels": corpus.target_tag}
    return {column: tag for column, tag in tags.items() if tag is not None}


def add_tags(tokenizer: "PreTrainedTokenizerBase", tags: Sequence[str]) -> None:
    """Add tags to a tokenizer of any kind, as single ids after all others, which no text gives.

    They are special tokens of tokenizer.json, so that `split_special_tokens` hides them from texts as it hides "</s>".

    Raises:
        ValueError: a tag that the vocabulary has as a token of text, or as a special one; a tokenizer of another
            package that would find it in texts.
    """
    from transformers import AddedToken

    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    for tag in tags:
        if backend is None or not tokenizer.split_special_tokens:
            raise ValueError(f"this tokenizer finds a tag such as {tag!r} in texts; set its split_special_tokens=true")
        if backend.token_to_id(tag) is not None:
            raise ValueError(f"tag {tag!r} is a token of the vocabulary already; choose another, such as '<2de>'")
        backend.add_special_tokens([AddedToken(tag, special=True, normalized=False)])
