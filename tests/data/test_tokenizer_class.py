# SPDX-License-Identifier: Apache-2.0
"""Added tags are one id each, with and without this package; reserved names in a text stay text."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from vanilla_transformer.data.tokenizer import TokenizerConfig, train_tokenizer
from vanilla_transformer.data.tokenizer_class import VanillaTransformerTokenizer

TAG, OTHER = "<2de>", "<2fr>"
ADDINGS = {
    "additional": lambda tokenizer: tokenizer.add_special_tokens({"additional_special_tokens": [TAG, OTHER]}),
    "extra": lambda tokenizer: tokenizer.add_special_tokens({"extra_special_tokens": [TAG, OTHER]}),
    "named": lambda tokenizer: tokenizer.add_special_tokens({"sep_token": TAG, "mask_token": OTHER}),
    "special": lambda tokenizer: tokenizer.add_tokens([TAG, OTHER], special_tokens=True),
    "plain": lambda tokenizer: tokenizer.add_tokens([TAG, OTHER]),
}
TEXTS = ["b a", "a </s> b", "</s>", "<s><pad> <unk>", ""]


@pytest.fixture(params=["bpe", "symbols"])
def tokenizer(request: pytest.FixtureRequest) -> VanillaTransformerTokenizer:
    return train_tokenizer(["b a c", "b a", "b"], TokenizerConfig(kind=request.param, vocab_size=260))


@pytest.mark.parametrize("adding", ADDINGS)
def test_tag_is_one_id_anywhere_in_a_text(tokenizer, adding: str, tmp_path: Path):
    before, size = {text: tokenizer(text).input_ids for text in TEXTS}, len(tokenizer)
    assert ADDINGS[adding](tokenizer) == 2
    tokenizer.save_pretrained(tmp_path)
    for each in (tokenizer, AutoTokenizer.from_pretrained(tmp_path)):
        assert len(each) == size + 2
        assert each.convert_tokens_to_ids([TAG, OTHER]) == [size, size + 1]
        for text, ids in before.items():
            assert each(text).input_ids == ids  # whatever else is in a text is as before
            assert each(f"{TAG}{text}").input_ids == [size, *ids]
            assert each(f"{text}{OTHER}").input_ids == [*ids[:-1], size + 1, ids[-1]]
            assert each(text, text_target=f"{TAG}{text}").labels == [size, *ids]


def test_folder_with_tags_opens_without_this_package(tokenizer, tmp_path: Path):
    ADDINGS["extra"](tokenizer)
    tokenizer.save_pretrained(tmp_path)
    texts = [f"{TAG} b a", f"b {OTHER}", *TEXTS]
    script = (
        "import json, sys\n"
        "from transformers import AutoTokenizer\n"
        "tokenizer = AutoTokenizer.from_pretrained('.')\n"
        "found = [tokenizer(json.loads(sys.argv[1])).input_ids, tokenizer.extra_special_tokens]\n"
        "tokenizer.save_pretrained('again')\n"
        "again = AutoTokenizer.from_pretrained('again')\n"
        "assert again(json.loads(sys.argv[1])).input_ids == found[0]\n"
        "assert 'vanilla_transformer' not in sys.modules\n"
        "print(json.dumps(found))\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-c", script, json.dumps(texts)]
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, encoding="utf-8", check=True)
    assert json.loads(run.stdout) == [tokenizer(texts).input_ids, [TAG, OTHER]]
    assert run.stderr == ""


def test_skip_special_tokens_skips_tags(tokenizer, tmp_path: Path):
    ADDINGS["extra"](tokenizer)
    tokenizer.save_pretrained(tmp_path)
    for each in (tokenizer, AutoTokenizer.from_pretrained(tmp_path)):
        ids = each(f"b {TAG} a").input_ids
        assert each.decode(ids, skip_special_tokens=True).split() == ["b", "a"]
        assert TAG in each.decode(ids)
        assert (
            each.batch_decode([ids, ids], skip_special_tokens=True) == [each.decode(ids, skip_special_tokens=True)] * 2
        )


@pytest.mark.parametrize("name", ["eos_token", "pad_token"])
def test_replaced_reserved_token_is_not_found_in_text(tokenizer, name: str):
    tokenizer.add_special_tokens({name: "<end>"})
    new = getattr(tokenizer, f"{name}_id")
    assert new == len(tokenizer) - 1
    assert new not in tokenizer("b <end> a").input_ids[:-1]
