# SPDX-License-Identifier: Apache-2.0
"""Several corpora in one: exact proportions, every pair before any again, whatever the processes."""

import json
import random
import string
from collections import Counter
from itertools import chain, islice, pairwise

import numpy as np
import pytest
from datasets import IterableDataset
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from vanilla_transformer.data import batches, mixture
from vanilla_transformer.data.batches import StreamingTokenBatches, TokenBatchSampler
from vanilla_transformer.data.mixture import (
    InterleavedStreams,
    MixedCorpusConfig,
    Mixture,
    NamedCorpusConfig,
    add_tags,
    pairs_per_epoch,
)
from vanilla_transformer.data.tokenized_pairs import prepare_pairs
from vanilla_transformer.data.tokenizer import TokenizerConfig, load_tokenizer, train_tokenizer

SIZES = {"clean": 300, "bt": 1000, "dirty": 500, "old": 7}
WEIGHTS = [2.0, 0.5, 0.3, 1.0]
SHOWN = [600, 500, 150, 7]
FIRST_ROWS = np.cumsum([0, *SIZES.values()])


def mixed(**options) -> Mixture:
    return Mixture(SIZES, pairs_per_epoch(SIZES, WEIGHTS), **{"seed": 3} | options)


def sampler(which: Mixture, **options) -> TokenBatchSampler:
    lengths = np.random.default_rng(5).integers(1, 30, size=(2, sum(SIZES.values())))
    return TokenBatchSampler(
        *lengths, **{"max_source_tokens": 200, "max_target_tokens": 200, "seed": 3, "mixture": which} | options
    )


def epoch_of(which: Mixture, epoch: int) -> np.ndarray:
    return which.rows(epoch, np.arange(which.pairs))


def of_corpus(rows: np.ndarray, number: int) -> list[int]:
    return rows[(rows >= FIRST_ROWS[number]) & (rows < FIRST_ROWS[number + 1])].tolist()


@pytest.mark.parametrize("epoch", [0, 1, 4])
def test_an_epoch_has_weight_times_size_pairs_of_each_corpus(epoch: int):
    rows = epoch_of(mixed(), epoch)
    assert [len(of_corpus(rows, number)) for number in range(4)] == SHOWN


def test_no_pair_comes_again_before_all_have_come():
    """Over ten epochs each pair of a corpus has come as often as any other, or once more."""
    rows = [epoch_of(mixed(), epoch) for epoch in range(10)]
    for number, (size, shown) in enumerate(zip(SIZES.values(), SHOWN, strict=True)):
        counts = np.zeros(size, dtype=int)
        for epochs, each in enumerate(rows, start=1):
            counts += np.bincount(np.array(of_corpus(each, number)) - FIRST_ROWS[number], minlength=size)
            assert counts.sum() == epochs * shown
            assert counts.max() - counts.min() <= 1


def test_halves_differ_by_pass_and_seed():
    first, second, third = (set(of_corpus(epoch_of(mixed(), epoch), 1)) for epoch in range(3))
    assert first.isdisjoint(second)
    assert first not in (third, set(of_corpus(epoch_of(mixed(seed=4), 0), 1)))


def test_rows_of_a_part_are_those_of_the_whole():
    positions = np.array([1256, 3, 700, 600])
    assert mixed().rows(2, positions).tolist() == epoch_of(mixed(), 2)[positions].tolist()


def test_a_corpus_of_many_pairs_is_permuted_in_runs(monkeypatch):
    monkeypatch.setattr(mixture, "MAX_RUNS", 100)
    test_no_pair_comes_again_before_all_have_come()
    half = of_corpus(epoch_of(mixed(), 0), 1)
    assert sum(b == a + 1 for a, b in pairwise(half)) >= len(half) * 0.85  # runs of 10


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("shard", [2**22, 400])
def test_any_number_of_processes_takes_the_epochs_pairs(processes: int, shard: int, monkeypatch):
    monkeypatch.setattr(batches, "PAIRS_PER_SHARD", shard)
    monkeypatch.setattr(batches, "PAIRS_PER_RUN", 16)
    taken: Counter = Counter()
    for process in range(processes):
        each = sampler(mixed(), num_processes=processes, process_index=process)
        each.set_epoch(3)
        taken.update(chain.from_iterable(each))
    assert taken == Counter(epoch_of(mixed(), 3).tolist())


def test_a_resumed_epoch_goes_on_with_the_same_batches():
    whole, resumed = sampler(mixed()), sampler(mixed())
    whole.set_epoch(2)
    resumed.set_epoch(2, start_batch=7)
    assert list(islice(whole, 7, None)) == list(resumed)


def test_a_temperature_takes_shares_of_powers_of_the_sizes():
    """An epoch has as many pairs as all corpora; within one pair of the formula."""
    sizes = {"high": 900_000, "low": 1_000, "middle": 40_000}
    for temperature in (1, 2, 5, 100):
        shown = pairs_per_epoch(sizes, [None] * 3, temperature)
        powers = [size ** (1 / temperature) for size in sizes.values()]
        assert sum(shown) == sum(sizes.values())
        for pairs, power in zip(shown, powers, strict=True):
            assert pairs == pytest.approx(power / sum(powers) * sum(sizes.values()), abs=1)


def test_a_corpus_without_a_pair_in_an_epoch_is_an_error():
    with pytest.raises(ValueError, match=r"b: an epoch would show none of its 4 pairs; raise its weight"):
        pairs_per_epoch({"a": 10, "b": 4}, [1.0, 0.01])


def stream(name: str, pairs: int) -> IterableDataset:
    def rows():
        for number in range(pairs):
            yield {"input_ids": [ord(name), number], "labels": [number]}

    return IterableDataset.from_generator(rows)


class TestInterleavedStreams:
    def test_shares_are_exact_to_a_pair(self):
        streams = InterleavedStreams({"a": stream("a", 5000), "b": stream("b", 90)}, [7, 3])
        names = [row["input_ids"][0] for row in streams]
        for length in (10, 101, 1000, 4321):
            assert names[:length].count(ord("a")) == pytest.approx(0.7 * length, abs=1)

    def test_an_epoch_reads_every_stream_through_and_some_again(self):
        streams = InterleavedStreams({"a": stream("a", 50), "b": stream("b", 20)}, [1, 1])
        counts = Counter(tuple(row["input_ids"]) for row in streams)
        assert {counts[(ord("a"), number)] for number in range(50)} == {1}
        assert {counts[(ord("b"), number)] for number in range(20)} == {2, 3}

    def test_each_pass_and_each_epoch_has_its_own_order_and_the_same_again(self):
        streams = InterleavedStreams({"a": stream("a", 40), "b": stream("b", 20)}, [1, 1]).shuffle(3, 100)

        def passes(epoch: int) -> list[list[int]]:
            streams.set_epoch(epoch)
            numbers = [row["labels"][0] for row in streams if row["input_ids"][0] == ord("b")]
            return [numbers[:20], numbers[20:40]]

        orders = [*passes(0), *passes(1)]
        assert len({tuple(order) for order in orders}) == 4
        assert orders == [*passes(0), *passes(1)]

    def test_batches_of_streams_are_the_same_for_any_processes_and_resume(self):
        def taken(processes: int, start: int = 0) -> list:
            groups = []
            for process in range(processes):
                streams = InterleavedStreams({"a": stream("a", 60), "b": stream("b", 30)}, [1, 3])
                options = {"max_source_tokens": 12, "max_target_tokens": 12, "seed": 1}
                each = StreamingTokenBatches(streams, num_processes=processes, process_index=process, **options)
                each.set_epoch(1, start)
                groups.append(list(each))
            return [batch for step in zip(*groups, strict=True) for batch in step]

        def pairs(found: list) -> Counter:
            return Counter(tuple(row["input_ids"]) for batch in found for row in batch)

        assert pairs(taken(1)) == pairs(taken(2)) == pairs(taken(3))
        assert taken(1, start=5) == taken(1)[5:]

    def test_a_stream_without_a_pair_is_an_error(self):
        with pytest.raises(ValueError, match="b has no pair to train on"):
            list(InterleavedStreams({"a": stream("a", 5), "b": stream("b", 0)}, [1, 1]))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"name": "a b"}, "name='a b' of a corpus must be of letters"),
        ({"name": ""}, "name='' of a corpus must be"),
        ({"name": "a", "tag": "<b t>"}, "tag='<b t>' of corpus 'a' must have characters, and no white space"),
        ({"name": "a", "target_tag": ""}, "target_tag='' of corpus 'a' must have characters"),
        ({"name": "a", "weight": 0.0}, "weight=0.0 of corpus 'a' must be greater than 0, and finite"),
        ({"name": "a", "weight": float("nan")}, "weight=nan of corpus 'a' must be greater than 0"),
        ({"name": "a", "path": None}, "a corpus is given by"),
    ],
)
def test_a_corpus_of_a_list_that_cannot_be_used(fields: dict, said: str):
    with pytest.raises(ValueError, match=said):
        MixedCorpusConfig(**{"path": "a.tsv"} | fields)


TAGS = ["<bt>", "<2de>"]


@pytest.fixture(params=["bpe", "symbols"])
def tokenizer(request):
    text = ["ab <2 de > < bt > 2de bt"] * 9
    trained = train_tokenizer(text, TokenizerConfig(kind=request.param, vocab_size=290))
    add_tags(trained, TAGS)
    return trained


def random_texts(count: int) -> list[str]:
    """Characters of tags, and of the text around them."""
    draws = random.Random(1)
    parts = [
        *TAGS * 3,
        "<2",
        "de>",
        "bt",
        "<",
        ">",
        " ",
        "\t",
        "\u00a0",
        "</s>",
        *string.printable,
        "ä",
        "中",
        "\u200b",
        "▁",
    ]
    return ["".join(draws.choices(parts, k=draws.randint(1, 12))) for _ in range(count)]


class TestTags:
    def ids(self, tokenizer) -> list[int]:
        return tokenizer.convert_tokens_to_ids(TAGS)

    def test_ids_come_after_all_others(self, tokenizer):
        assert self.ids(tokenizer) == [len(tokenizer) - 2, len(tokenizer) - 1]

    def test_no_text_gives_one(self, tokenizer, tmp_path):
        """Neither with this package, nor by plain transformers, nor once it has been saved and opened again."""
        tokenizer.save_pretrained(tmp_path)
        ours = load_tokenizer(tmp_path)
        ours.save_pretrained(tmp_path / "again")
        config = json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))
        (tmp_path / "tokenizer_config.json").write_text(
            json.dumps(config | {"tokenizer_class": "PreTrainedTokenizerFast"}), encoding="utf-8"
        )
        plain = AutoTokenizer.from_pretrained(tmp_path)
        assert type(plain) is not type(ours)
        texts = random_texts(2000)
        assert sum(any(tag in text for tag in TAGS) for text in texts) > 200
        for each in (tokenizer, ours, load_tokenizer(tmp_path / "again"), plain):
            assert isinstance(each, PreTrainedTokenizerFast)
            assert each.convert_tokens_to_ids(TAGS) == self.ids(tokenizer)
            assert not set(chain.from_iterable(each(texts)["input_ids"])) & set(self.ids(tokenizer))

    def test_decoding_skips_them_with_special_tokens(self, tokenizer):
        ids = [self.ids(tokenizer)[0], *tokenizer("ab 2de")["input_ids"]]
        assert tokenizer.decode(ids, skip_special_tokens=True) == "ab 2de"

    def test_pairs_begin_with_them(self, tokenizer):
        from datasets import Dataset

        corpus = Dataset.from_dict({"source": ["ab"], "target": ["bt"]})
        bare, tagged = (
            prepare_pairs(corpus, tokenizer, 9, first_tokens=tokens)[0][0]
            for tokens in ({}, {"input_ids": self.ids(tokenizer)[0]})
        )
        assert tagged["input_ids"] == [self.ids(tokenizer)[0], *bare["input_ids"]]
        assert tagged["source_length"] == bare["source_length"] + 1
        assert tagged["labels"] == bare["labels"]

    def test_a_token_of_text_is_no_tag(self, tokenizer):
        with pytest.raises(ValueError, match="tag 'bt' is a token of the vocabulary already"):
            add_tags(tokenizer, ["bt"])


def test_a_list_by_names_and_places():
    corpora = [NamedCorpusConfig(name="de", path="a.tsv"), NamedCorpusConfig(name="fr", path="b.tsv")]
    assert list(mixture.by_place("data.test", corpora)) == ["data.test[de]", "data.test[fr]"]
    assert list(mixture.by_name("test", corpora)) == ["de", "fr"]
