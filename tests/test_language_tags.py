# SPDX-License-Identifier: Apache-2.0
"""Tags by their ids, which text cannot give: in `translate_lines`, the pipeline and the command, against `generate`."""

import sys
from io import BytesIO, TextIOWrapper
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase, pipeline

from tests.families import END, FAMILIES, START
from vanilla_transformer.cli import main
from vanilla_transformer.data.mixture import add_tags
from vanilla_transformer.data.tokenizer import TokenizerConfig, load_tokenizer, train_tokenizer
from vanilla_transformer.inference.model_folder import load_model_folder
from vanilla_transformer.inference.translate import translate_lines
from vanilla_transformer.language_tags import tag_id, tag_options

LINES = ["w1 w2 w3", "w4 w5", "w6 w7 w8 w9"]


@pytest.fixture
def folder(tmp_path) -> Path:
    """Random weights; the vocabulary of a tiny model ends with three tags."""
    tokenizer = train_tokenizer([" ".join(f"w{i}" for i in range(24))], TokenizerConfig(kind="symbols"))
    add_tags(tokenizer, ["<2de>", "<2fr>", "<bt>"])
    model = FAMILIES[0].model(pad_token_id=0, bos_token_id=START, eos_token_id=END, decoder_start_token_id=START)
    assert model.config.vocab_size == len(tokenizer)
    ends = {"eos_token_id": END, "pad_token_id": 0, "decoder_start_token_id": START}
    model.generation_config = GenerationConfig(num_beams=1, max_new_tokens=5, **ends)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    return tmp_path


def expected(folder: Path, before: list[int], **options) -> list[str]:
    """Line by line, by transformers' own search."""
    model, tokenizer = load_model_folder(folder), load_tokenizer(folder)
    ids = [torch.tensor([before + tokenizer(line)["input_ids"]]) for line in LINES]
    return [tokenizer.decode(model.generate(each, **options)[0], skip_special_tokens=True) for each in ids]


def opened(folder: Path, lang_to_id: dict[str, int] | None = None) -> tuple:
    model = load_model_folder(folder)
    if lang_to_id is not None:
        model.generation_config.lang_to_id = lang_to_id
        model.save_pretrained(folder)
    return load_model_folder(folder), load_tokenizer(folder)


def test_a_tag_stands_before_every_source(folder):
    model, tokenizer = opened(folder)
    plain, tagged, german = (
        [best[0].text for best in translate_lines(model, tokenizer, LINES, max_batch_tokens=99, **options)]
        for options in ({}, {"tag": "<bt>"}, {"target_language": "de"})
    )
    assert plain == expected(folder, [])
    assert tagged == expected(folder, [tag_id(tokenizer, "<bt>")])
    assert german == expected(folder, [tag_id(tokenizer, "<2de>")])
    assert len({*plain, *tagged, *german}) > len(LINES)  # or the tags would show in nothing


def test_a_target_language_is_the_forced_first_token_where_the_model_says_so(folder):
    _, tokenizer = opened(folder)
    german, tag = tag_id(tokenizer, "<2de>"), tag_id(tokenizer, "<bt>")
    model, _ = opened(folder, {"<2de>": german})
    options = {"max_batch_tokens": 99, "target_language": "de", "tag": "<bt>"}
    forced = [best[0].text for best in translate_lines(model, tokenizer, LINES, **options)]
    assert forced == expected(folder, [tag], forced_bos_token_id=german)
    assert not any("<" in text for text in forced)


@pytest.mark.parametrize("is_forced", [False, True])
def test_the_pipeline_takes_a_target_language(folder, is_forced: bool):
    _, tokenizer = opened(folder)
    ids = {tag: tag_id(tokenizer, tag) for tag in ("<2de>", "<2fr>")}
    opened(folder, ids if is_forced else None)
    translator = pipeline("translation", str(folder), tgt_lang="de")
    for language, options in (("de", {}), ("fr", {"tgt_lang": "fr"})):
        found = [output[0]["translation_text"] for output in translator(LINES, **options)]
        tag = ids[f"<2{language}>"]
        assert found == (expected(folder, [], forced_bos_token_id=tag) if is_forced else expected(folder, [tag]))


@pytest.mark.parametrize(("option", "value", "tag"), [("--target-language", "fr", "<2fr>"), ("--tag", "<bt>", "<bt>")])
def test_the_command_takes_them(folder, monkeypatch, capfdbinary, option: str, value: str, tag: str):
    monkeypatch.setattr(sys, "stdin", TextIOWrapper(BytesIO("\n".join(LINES).encode()), encoding="utf-8"))
    assert main(["translate", str(folder), option, value, "--quiet"]) == 0
    found = capfdbinary.readouterr().out.decode().splitlines()
    assert found == expected(folder, [tag_id(load_tokenizer(folder), tag)])


@pytest.mark.parametrize(
    ("tag", "language", "said"),
    [
        ("<2xx>", None, "the tokenizer has no tag '<2xx>'; it has '<2de>', '<2fr>', '<bt>'"),
        ("w1", None, "the tokenizer has no tag 'w1'"),
        (None, "xx", "the tokenizer has no tag '<2xx>'"),
        ("<bt>", "de", "tag='<bt>', target_language='de': a source has one tag; give one of them"),
    ],
)
def test_tags_that_cannot_be_put(folder, tag, language, said: str):
    tokenizer: PreTrainedTokenizerBase = load_tokenizer(folder)
    with pytest.raises(ValueError, match=said):
        tag_options(tokenizer, SimpleNamespace(), tag, language)
