# SPDX-License-Identifier: Apache-2.0
import json

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from vanilla_transformer.data.tokenizer import TokenizerConfig, train_tokenizer
from vanilla_transformer.exporting.plain_tokenizer import write_plain_tokenizer

LINES = ["the quick brown fox", "jumps over the lazy dog"] * 3


@pytest.mark.parametrize("kind", ["bpe", "symbols"])
def test_ids_and_texts_are_those_of_our_tokenizer(tmp_path, kind):
    ours = train_tokenizer(LINES, TokenizerConfig(kind=kind, vocab_size=280))
    ours.add_special_tokens({"extra_special_tokens": ["<2de>"]})
    write_plain_tokenizer(ours, tmp_path)
    for theirs in (AutoTokenizer.from_pretrained(tmp_path), PreTrainedTokenizerFast.from_pretrained(tmp_path)):
        for text in ("<2de> the dog </s> <pad>", "fox dog  the", ""):
            assert theirs(text)["input_ids"] == ours(text)["input_ids"]
            ids = ours(text)["input_ids"]
            assert theirs.decode(ids, skip_special_tokens=False) == ours.decode(ids, skip_special_tokens=False)
        assert theirs(["the", "the dog"], padding=True) == ours(["the", "the dog"], padding=True)


def test_what_older_versions_cannot_read_is_not_written(tmp_path):
    ours = train_tokenizer(LINES, TokenizerConfig(vocab_size=280))
    ours.add_special_tokens({"extra_special_tokens": ["<2de>"]})
    write_plain_tokenizer(ours, tmp_path)
    merges = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))["model"]["merges"]
    assert merges
    assert all(merge.count(" ") == 1 for merge in merges)  # tokenizers 0.19: "a b", and no pair
    config = json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"  # transformers 4 has no TokenizersBackend
    assert "extra_special_tokens" not in config  # a list in transformers 5, a dict in 4
