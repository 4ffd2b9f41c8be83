# SPDX-License-Identifier: Apache-2.0
"""Tokenised pairs: dropped ones are counted, each corpus is tokenised once, tokens take 16 or 32 bits."""

from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset

from vanilla_transformer.data import tokenized_pairs
from vanilla_transformer.data.batches import TokenBatchSampler
from vanilla_transformer.data.corpus import CorpusConfig, load_corpus
from vanilla_transformer.data.tokenized_pairs import prepare_pairs, read_lengths
from vanilla_transformer.data.tokenizer import TokenizerConfig, load_tokenizer, train_tokenizer

STREAMING = pytest.mark.parametrize("streaming", [False, True])


def corpus_of(texts: list[tuple[str, str]]) -> Dataset:
    return Dataset.from_dict({"source": [source for source, _ in texts], "target": [target for _, target in texts]})


class TestPreparePairs:
    """One symbol is one token, and each side ends with one more."""

    TEXTS = [("a b", "x"), ("", "x"), ("a", " \t "), ("a a a a", "x"), ("a", "x x x x"), ("a b b", "x x x")]
    KEPT = [("a b", "x"), ("a b b", "x x x")]

    def prepare(self, texts: list[tuple[str, str]], streaming: bool = False, max_length: int = 4):
        tokenizer = train_tokenizer(["a b x"], TokenizerConfig(kind="symbols"))
        corpus = corpus_of(texts)
        return tokenizer, *prepare_pairs(corpus.to_iterable_dataset() if streaming else corpus, tokenizer, max_length)

    @STREAMING
    def test_kept_and_dropped_pairs_are_counted(self, streaming: bool):
        tokenizer, pairs, dropped = self.prepare(self.TEXTS, streaming)
        kept = list(pairs)
        for (source, target), row in zip(self.KEPT, kept, strict=True):
            for text, ids, length in (
                (source, row["input_ids"], row["source_length"]),
                (target, row["labels"], row["target_length"]),
            ):
                assert tokenizer.convert_ids_to_tokens(ids) == [*text.split(), "</s>"]
                assert length == len(text.split()) + 1
        assert (dropped.kept, dropped.empty, dropped.too_long) == (2, 2, 2)

    def test_a_target_tokenizer_makes_the_labels_and_may_be_larger(self):
        tokenizer = train_tokenizer(["a"], TokenizerConfig(kind="symbols"))
        words = [f"w{number:05}" for number in range(70_000)]  # beyond 16 bits
        target = train_tokenizer([" ".join(words)], TokenizerConfig(kind="symbols", vocab_size=80_000))
        tokenizer.target_tokenizer = target
        pairs, _ = prepare_pairs(corpus_of([("a", words[-1])]), tokenizer, 4)
        assert pairs[0]["labels"] == [target.convert_tokens_to_ids(words[-1]), 2]
        assert pairs[0]["input_ids"] == [4, 2]

    def test_alignments_become_links_of_tokens(self):
        """A tag before the source moves its tokens; dropped pairs take their links with them."""
        tokenizer = train_tokenizer(["a b x"], TokenizerConfig(kind="symbols"))
        rows = {"source": ["a b", "", "b"], "target": ["x x x", "x", "x"], "alignments": ["1-0 0-2 1p1", "", "0-0"]}
        plain, _ = prepare_pairs(Dataset.from_dict(rows), tokenizer, 5)
        tagged, _ = prepare_pairs(Dataset.from_dict(rows), tokenizer, 5, first_tokens={"input_ids": 3})
        assert plain["links"][:] == [[0, 2, 1, 0], [0, 0]]
        assert tagged["links"][:] == [[1, 2, 2, 0], [1, 0]]

    @STREAMING
    def test_text_is_kept_only_where_it_is_asked_for(self, streaming: bool):
        tokenizer, pairs, _ = self.prepare(self.TEXTS, streaming)
        assert set(next(iter(pairs))) == {"input_ids", "labels", "source_length", "target_length"}
        with_text, _ = prepare_pairs(corpus_of(self.TEXTS), tokenizer, 4, with_text=True)
        assert list(zip(with_text["source"], with_text["target"], strict=True)) == self.KEPT
        assert with_text["labels"][:] == [row["labels"] for row in pairs]

    def test_counts_of_a_stream_grow_while_it_is_read(self):
        _, pairs, dropped = self.prepare(self.TEXTS, streaming=True)
        assert dropped.kept + dropped.empty + dropped.too_long == 0
        list(pairs)
        assert dropped.kept + dropped.empty + dropped.too_long == len(self.TEXTS)

    def test_log_line_has_every_count(self):
        _, _, dropped = self.prepare([*self.TEXTS, ("", "")])
        assert str(dropped) == (
            "2 pairs kept, 3 with an empty side dropped, 2 with more than 4 tokens on a side dropped"
        )

    def test_no_pair_left_is_an_error(self):
        with pytest.raises(ValueError, match="no pair is left to train on: 0 pairs kept, 1 with an empty side"):
            self.prepare([("", "x")])

    def test_line_of_a_megabyte_is_dropped(self):
        tokenizer = train_tokenizer(["the cat"] * 9, TokenizerConfig(vocab_size=260))
        corpus = Dataset.from_dict({"source": ["the cat", "the cat " * 131_072], "target": ["x", "y"]})
        pairs, dropped = prepare_pairs(corpus, tokenizer, 100)
        assert (len(pairs), dropped.too_long) == (1, 1)


class TestCache:
    """Tokenised once for all processes and for every resumption."""

    @pytest.fixture
    def config(self, tmp_path: Path) -> CorpusConfig:
        for side, line in (("source", "the cat\n"), ("target", "le chat\n")):
            (tmp_path / side).write_text(line * 30, encoding="utf-8")
        return CorpusConfig(source=str(tmp_path / "source"), target=str(tmp_path / "target"))

    @pytest.fixture
    def calls(self, monkeypatch: pytest.MonkeyPatch) -> list[int]:
        calls: list[int] = []

        def counted(batch, **options):
            calls.append(len(batch["source"]))
            return tokenize(batch, **options)

        tokenize = tokenized_pairs._tokenize
        monkeypatch.setattr(tokenized_pairs, "_tokenize", counted)
        return calls

    def test_one_fingerprint_of_a_tokenizer_trained_now_and_one_opened(self, config, calls, tmp_path: Path):
        trained = train_tokenizer(["the cat le chat"] * 30, TokenizerConfig(vocab_size=270))
        trained.save_pretrained(tmp_path / "one")
        trained.save_pretrained(tmp_path / "other")
        tokenizers = trained, load_tokenizer(tmp_path / "one"), load_tokenizer(tmp_path / "other")
        fingerprints = {prepare_pairs(load_corpus(config), tokenizer, 40)[0]._fingerprint for tokenizer in tokenizers}
        assert len(fingerprints) == 1
        assert calls == [30]

    def test_counts_of_dropped_pairs_come_from_the_cache(self, config, calls, tmp_path: Path):
        (tmp_path / "source").write_text("a\n\na b c d\n", encoding="utf-8")
        (tmp_path / "target").write_text("a\na\na\n", encoding="utf-8")
        tokenizer = train_tokenizer(["a b c d"], TokenizerConfig(kind="symbols"))
        first, second = (prepare_pairs(load_corpus(config), tokenizer, 4)[1] for _ in range(2))
        assert first == second
        assert (first.kept, first.empty, first.too_long) == (1, 1, 1)
        assert calls == [3]

    @pytest.mark.parametrize("change", ["tokenizer", "text", "max_length"])
    def test_another_tokenizer_text_or_length_is_tokenised_anew(self, config, calls, tmp_path: Path, change: str):
        tokenizer, max_length = train_tokenizer(["the cat"] * 30, TokenizerConfig(vocab_size=265)), 20
        prepare_pairs(load_corpus(config), tokenizer, max_length)
        if change == "tokenizer":
            tokenizer = train_tokenizer(["le chat"] * 30, TokenizerConfig(vocab_size=265))
        elif change == "text":
            (tmp_path / "source").write_text("the cut\n" * 30, encoding="utf-8")
        else:
            max_length = 21
        prepare_pairs(load_corpus(config), tokenizer, max_length)
        assert calls == [30, 30]

    def test_two_processes_tokenise_as_one_does(self, config, monkeypatch: pytest.MonkeyPatch):
        tokenizer = train_tokenizer(["the cat"] * 30, TokenizerConfig(vocab_size=265))
        alone, _ = prepare_pairs(load_corpus(config), tokenizer, 30)
        monkeypatch.setattr(tokenized_pairs, "_processes", lambda pairs: 2)
        together, dropped = prepare_pairs(load_corpus(config), tokenizer, 31)
        assert len(together.cache_files) == 2
        assert together["labels"][:] == alone["labels"][:]
        assert dropped.kept == read_lengths(together).shape[1] == 30

    def test_small_corpora_are_tokenised_by_one_process(self):
        assert tokenized_pairs._processes(99_999) is None


class TestDtypes:
    @pytest.mark.parametrize(("vocab_size", "dtype"), [(2**16, "uint16"), (2**16 + 1, "uint32")])
    def test_tokens_take_16_bits_if_the_vocabulary_allows_it(self, vocab_size: int, dtype: str):
        symbols = [f"w{number}" for number in range(vocab_size - 4)]  # besides the special tokens
        tokenizer = train_tokenizer(symbols, TokenizerConfig(kind="symbols", vocab_size=vocab_size))
        text = tokenizer.decode([4, vocab_size - 1])
        pairs, _ = prepare_pairs(corpus_of([(text, text)]), tokenizer, 9)
        assert pairs.features["input_ids"].feature.dtype == pairs.features["labels"].feature.dtype == dtype
        assert pairs[0]["labels"] == pairs[0]["input_ids"] == [4, vocab_size - 1, tokenizer.eos_token_id]

    def test_lengths_are_mapped_and_not_copied(self):
        tokenizer = train_tokenizer(["a b"], TokenizerConfig(kind="symbols"))
        pairs, _ = prepare_pairs(corpus_of([("a", "b b"), ("a b a", "b")]), tokenizer, 9)
        lengths = read_lengths(pairs)
        assert isinstance(lengths, np.memmap)
        assert lengths.tolist() == [[2, 4], [3, 2]]
        sampler = TokenBatchSampler(*lengths, max_source_tokens=9, max_target_tokens=9, seed=1)
        assert np.shares_memory(sampler.lengths[0], lengths)
