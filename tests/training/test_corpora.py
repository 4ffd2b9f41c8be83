# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pytest
from datasets import Dataset

from vanilla_transformer.data import tokenized_pairs
from vanilla_transformer.data.tokenized_pairs import DroppedPairs
from vanilla_transformer.training.checkpoint import list_checkpoints
from vanilla_transformer.training.corpora import ORDER, Corpora, check_same_corpora
from vanilla_transformer.training.train_state import Progress


def test_a_test_corpus_that_is_not_there_stops_the_run_before_it_starts(tiny_run):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.en does not exist"):
        tiny_run.train("data.test.source=nowhere.en", "data.test.target=nowhere.de")
    assert list_checkpoints(tiny_run.output_dir / "checkpoints") == []


def test_a_pair_beyond_the_budget_is_an_error_before_the_first_update(tiny_run):
    with pytest.raises(ValueError, match=r"more than max_source_tokens=3; raise it, or lower data\.max_length"):
        tiny_run.train("training.max_source_tokens=3")
    assert list_checkpoints(tiny_run.output_dir / "checkpoints") == []


def test_a_streams_dropped_pairs_are_counted(tiny_run, caplog):
    caplog.set_level("INFO", logger="vanilla_transformer")
    options = ["data.train.streaming=true", "training.max_updates=null", "training.max_epochs=1", "data.max_length=6"]
    run = tiny_run.train(*options)
    assert run.corpora.dropped.too_long > 0
    assert run.corpora.dropped.kept + run.corpora.dropped.too_long == 120
    assert f"{run.corpora.dropped.too_long} with more than 6 tokens on a side dropped" in caplog.text


def test_a_resumed_run_finds_its_tokens_in_the_cache(tiny_run, monkeypatch):
    """The tokenizer that was trained, and the one that is opened now, are one to the cache."""
    tiny_run.train("training.max_updates=1")

    def refuse(*_, **__):
        raise AssertionError("tokenised again")

    monkeypatch.setattr(tokenized_pairs, "_tokenize", refuse)
    assert tiny_run.train("training.max_updates=2").state.progress.updates == 2


def test_a_run_with_other_batches_of_an_older_version_is_refused():
    text = {"a.en": "5 bytes, SHA-256 0"}
    pairs = Dataset.from_dict({"input_ids": [[1]]})
    corpora = Corpora(pairs, DroppedPairs(), {}, {}, text | {ORDER: "by the longer side"}, {})
    check_same_corpora(Progress(corpus=text | {ORDER: "by the longer side"}, pairs=1), corpora, Path("runs/my"))
    with pytest.raises(ValueError, match=r"runs/my was begun by an older version, which made other batches"):
        check_same_corpora(Progress(corpus=text, pairs=1), corpora, Path("runs/my"))
