# SPDX-License-Identifier: Apache-2.0
import pytest

from vanilla_transformer.training.checkpoint import list_checkpoints


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
