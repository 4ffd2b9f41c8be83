# SPDX-License-Identifier: Apache-2.0
import json
import re
from collections import Counter
from itertools import chain
from pathlib import Path

import pytest
import torch
import yaml
from datasets import Dataset

from tests.conftest import write_reversals
from vanilla_transformer.data import tokenized_pairs
from vanilla_transformer.data.tokenized_pairs import DroppedPairs
from vanilla_transformer.data.tokenizer_class import target_tokenizer
from vanilla_transformer.inference.model_folder import load_model_folder
from vanilla_transformer.language_tags import tag_options
from vanilla_transformer.training import loop
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


DE, BT = {"name": "de", "tag": "<2de>", "weight": 2.0}, {"name": "bt", "tag": "<bt>", "weight": 0.5}


@pytest.mark.parametrize("streaming", [False, True])
def test_a_mixture_resumes_to_the_bit_in_the_middle_of_an_epoch(tiny_run, streaming: bool):
    own = {"streaming": streaming}
    options = [tiny_run.corpora("train", (40, DE | own), (20, BT | own)), "data.max_length=20"]
    whole = tiny_run.train(*options, "training.max_updates=17", f"training.output_dir={tiny_run.folder / 'whole'}")
    for updates in (2, 11, 17):
        run = tiny_run.train(*options, f"training.max_updates={updates}")
        assert updates > 2 or run.state.progress.batches == 2
    assert run.state.progress.epoch > 1
    for name, weight in run.state.bare_model().state_dict().items():
        assert torch.equal(weight, whole.state.bare_model().state_dict()[name])


def test_the_documents_example_trains(tiny_run, monkeypatch):
    page = (Path(__file__).parents[2] / "docs" / "reference.md").read_text(encoding="utf-8")
    [example] = [
        block
        for block in re.findall(r"^```yaml\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
        if "validation:" in block and "tag:" in block
    ]
    values = yaml.safe_load(example)
    monkeypatch.chdir(tiny_run.folder)
    for corpus in chain(values["data"]["train"], values["data"]["validation"]):
        sides = [Path(path).read_text("utf-8") for path in write_reversals(Path(), corpus["name"], 20).values()]
        if "path" in corpus:
            rows = zip(*(side.splitlines() for side in ("source\n" + sides[0], "target\n" + sides[1])), strict=True)
            Path(corpus["path"]).write_text("".join(f"{row[0]}\t{row[1]}\n" for row in rows), encoding="utf-8")
        else:
            for key, side in zip(("source", "target"), sides, strict=True):
                Path(corpus[key]).write_text(side, encoding="utf-8")
    overrides = [f"data.{name}={json.dumps(values['data'][name])}" for name in ("train", "validation")]
    run = tiny_run.train(*overrides, *(f"training.{key}={value}" for key, value in values["training"].items()))
    assert run.corpora.mixture is not None
    assert run.corpora.mixture.shown == [40, 20, 10]
    results = json.loads((run.output_dir / "results.json").read_text(encoding="utf-8"))
    assert list(results["validation"]["corpora"]) == ["de", "fr"]
    tags = ["<2de>", "<2fr>", "<bt>"]
    assert sorted(run.tokenizer.convert_tokens_to_ids(tags)) == [len(run.tokenizer) - i for i in (3, 2, 1)]


def test_an_epoch_of_a_mixture_has_the_pairs_that_are_logged(tiny_run, monkeypatch, caplog):
    caplog.set_level("INFO", logger="vanilla_transformer")
    seen, step = Counter(), loop.backward

    def watch(state, parts, training):
        seen.update(int(token) for batch in parts for token in batch["input_ids"][:, 0])
        return step(state, parts, training)

    monkeypatch.setattr(loop, "backward", watch)
    mixture = tiny_run.corpora("train", (40, DE), (70, BT))
    run = tiny_run.train(mixture, "training.max_updates=null", "training.max_epochs=2")
    assert seen == {run.tokenizer.convert_tokens_to_ids("<2de>"): 160, run.tokenizer.convert_tokens_to_ids("<bt>"): 70}
    assert (
        "an epoch has 115 pairs: data.train[de] 80, each of 40 2 times (69.6%); data.train[bt] 35 of 70 (30.4%)"
        in caplog.text
    )
    assert "data.train[bt]: 70 pairs kept" in caplog.text


@pytest.mark.parametrize(
    ("corpora", "said"),
    [
        ([(40, DE), (70, BT | {"weight": 1.0})], r"another data.train\[bt\].weight \(0.5 there, 1.0 now\)"),
        ([(40, DE | {"tag": None}), (70, BT)], r"another data.train\[de\].tag \('<2de>' there, None now\)"),
        ([(40, DE)], r"another data.train\[\].name \(\['de', 'bt'\] there, \['de'\] now\)"),
        ([(70, BT), (40, DE)], r"another data.train\[\].name \(\['de', 'bt'\] there, \['bt', 'de'\] now\)"),
        ([(40, DE), (71, BT)], r"data.train\[bt\] has changed since .* was trained on it .*SHA-256"),
    ],
)
def test_resuming_with_a_changed_list_is_refused_with_the_difference(tiny_run, corpora, said: str):
    tiny_run.train(tiny_run.corpora("train", (40, DE), (70, BT)), "training.max_updates=2")
    with pytest.raises(ValueError, match=said) as caught:
        tiny_run.train(tiny_run.corpora("train", *corpora))
    assert "\n" not in str(caught.value)


def test_resuming_a_list_elsewhere_goes_on(tiny_run, tmp_path):
    listed = tiny_run.corpora("train", (40, DE), (70, BT))
    tiny_run.train(listed, "training.max_updates=2")
    for file in tiny_run.folder.glob("train-*"):
        file.rename(file.with_name(f"moved-{file.name}"))
    run = tiny_run.train(listed.replace("train-", "moved-train-"), "training.max_updates=3")
    assert run.state.progress.updates == 3


def test_resuming_a_list_as_one_corpus_is_refused(tiny_run):
    tiny_run.train(tiny_run.corpora("train", (40, {"name": "a"})), "training.max_updates=2")
    with pytest.raises(ValueError, match=r"another data\.train"):
        tiny_run.train()


def test_a_tokenizer_without_a_tag_is_refused(tiny_run, model_folder):
    with pytest.raises(ValueError, match=r"tokenizer\.path=.*: the tokenizer has no tag '<2de>'; it has no tags"):
        tiny_run.train(tiny_run.corpora("train", (40, DE)), f"tokenizer.path={model_folder}")


@pytest.mark.parametrize("shared", [True, False])
def test_targets_that_begin_with_a_tag_are_forced_to(tiny_run, shared):
    """The labels have it, and generation_config.json says so, by which `target_language` finds it."""
    languages = [(20, {"name": name, "target_tag": f"<2{name}>", "tag": "<bt>"}) for name in ("de", "fr")]
    lists = [tiny_run.corpora(kind, *languages) for kind in ("train", "validation")]
    run = tiny_run.train(*lists, f"tokenizer.shared={json.dumps(shared)}", "training.max_updates=2")
    side = target_tokenizer(run.tokenizer)
    assert (side is run.tokenizer) == shared
    assert side.get_added_vocab().keys() - {*side.all_special_tokens} == {"<2de>", "<2fr>", *["<bt>"] * shared}
    ids = dict(zip(["<2de>", "<2fr>"], side.convert_tokens_to_ids(["<2de>", "<2fr>"]), strict=True))
    source_tag = run.tokenizer.convert_tokens_to_ids("<bt>")
    assert {row["input_ids"][0] for row in run.corpora.train} == {source_tag}
    assert [row["labels"][0] for row in run.corpora.train] == [ids["<2de>"]] * 20 + [ids["<2fr>"]] * 20
    model = load_model_folder(run.output_dir / "model")
    assert model.generation_config.lang_to_id == ids
    assert tag_options(run.tokenizer, model.generation_config, "<bt>", "fr") == (
        [source_tag],
        {"forced_bos_token_id": ids["<2fr>"]},
    )
    with pytest.raises(ValueError, match=r"no tag '<2xx>'; it has '<2de>', '<2fr>', '<bt>'"):
        tag_options(run.tokenizer, model.generation_config, None, "xx")


def test_a_run_with_other_batches_of_an_older_version_is_refused():
    text = {"a.en": "5 bytes, SHA-256 0"}
    pairs = Dataset.from_dict({"input_ids": [[1]]})
    corpora = Corpora(pairs, DroppedPairs(), {}, {}, text | {ORDER: "by the longer side"}, {})
    check_same_corpora(Progress(corpus=text | {ORDER: "by the longer side"}, pairs=1), corpora, Path("runs/my"))
    with pytest.raises(ValueError, match=r"runs/my was begun by an older version, which made other batches"):
        check_same_corpora(Progress(corpus=text, pairs=1), corpora, Path("runs/my"))
