# SPDX-License-Identifier: Apache-2.0
"""What transformers itself does with the Hub, for the models and tokenizers of this package."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.hub.hub_client import WRITE, command, environment
from vanilla_transformer.hub.publish import push_folder
from vanilla_transformer.hub.published_folder import list_files
from vanilla_transformer.hub.pull import pull

# Each of these runs in the client's process.


def open_folder(folder: str | Path, **options: Any) -> tuple:
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    import vanilla_transformer  # noqa: F401 -- registers the models

    return AutoModelForSeq2SeqLM.from_pretrained(folder, **options), AutoTokenizer.from_pretrained(folder, **options)


def push_parts(folder: Path, name: str, **options: Any) -> list[str]:
    """The URLs of the commits of model and tokenizer."""
    model, tokenizer = open_folder(folder)
    return [str(part.push_to_hub(name, **options).pr_url) for part in (model, tokenizer)]


def weights_of(name: str, **options: Any) -> dict[str, list]:
    model, _ = open_folder(name, **options)
    return {key: value.tolist() for key, value in model.state_dict().items()}


def train_and_push(folder: Path, output: Path, name: str, **options: Any) -> None:
    from transformers import DataCollatorForSeq2Seq, Seq2SeqTrainer, Seq2SeqTrainingArguments

    model, tokenizer = open_folder(folder)
    rows = [{"input_ids": [4, 5, 2], "labels": [5, 4, 2]}] * 4
    arguments = Seq2SeqTrainingArguments(
        output_dir=str(output),
        max_steps=2,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        push_to_hub=True,
        hub_model_id=name,
        **options,
    )
    trainer = Seq2SeqTrainer(
        model,
        arguments,
        train_dataset=rows,
        data_collator=DataCollatorForSeq2Seq(tokenizer, model=model),
        processing_class=tokenizer,
    )
    trainer.train()
    trainer.push_to_hub()


def same_weights(found: dict[str, list], folder: Path) -> bool:
    expected = load_file(folder / "model.safetensors")
    return all(torch.equal(torch.tensor(found[key]), value) for key, value in expected.items())


# Pushing


def test_model_and_tokenizer_push_all_that_opening_them_takes(hub, client, complete, name):
    client(push_parts, complete, name)
    head = hub.repositories[name].branches["main"]
    assert set(head.files) - {".gitattributes"} == set(dict(list_files(complete))) - {"LICENSE"}
    assert same_weights(client(weights_of, name), complete)


def test_a_pull_request_leaves_main_alone(hub, client, complete, make_folder, name):
    client(push_folder, complete, name)
    main = hub.repositories[name].branches["main"]
    urls = client(push_parts, make_folder(seed=2), name, create_pr=True, commit_message="Better")
    assert urls[0] == f"{hub.url}/{name}/discussions/1"
    assert hub.repositories[name].branches == {"main": main}
    proposed = hub.repositories[name].pull_requests["refs/pr/1"]
    assert (proposed.title, proposed.parent) == ("Better", main)


def test_a_private_model_opens_for_its_owner_alone(hub, client, complete, name):
    client(push_parts, complete, name, private=True)
    assert hub.repositories[name].private
    assert same_weights(client(weights_of, name), complete)
    with pytest.raises(OSError, match="is not a local folder and is not a valid model identifier"):
        client(weights_of, name, as_user=None)


@pytest.mark.parametrize(
    "given",
    [
        "HF_TOKEN",
        pytest.param(
            "hub_token",
            marks=pytest.mark.xfail(reason="transformers 5.24 pickles hub_token into training_args.bin, and pushes it"),
        ),
    ],
)
def test_the_trainer_pushes(hub, client, complete, name, tmp_path, given):
    options = {"as_user": WRITE} if given == "HF_TOKEN" else {"as_user": None, "hub_token": WRITE}
    client(train_and_push, complete, tmp_path / "output", name, **options)
    files = hub.repositories[name].branches["main"].files
    assert set(dict(list_files(complete))) - {"LICENSE"} <= set(files)
    assert not same_weights(client(weights_of, name), complete)  # it has learnt
    contents = {path: file.content or hub.objects[file.sha256] for path, file in files.items()}
    assert [path for path, content in contents.items() if WRITE.encode() in content] == []


# Loading


def test_loading_by_branch_tag_and_commit(hub, client, complete, make_folder, name):
    new = make_folder(seed=2)
    first, _, _ = (
        client(push_folder, complete, name).rpartition("/")[2],
        client(push_folder, new, name),
        client(push_folder, complete, name, revision="old"),
    )
    hub.repositories[name].tags["v1"] = hub.repositories[name].find(first)
    for revision in (first, "v1", "old"):
        assert same_weights(client(weights_of, name, revision=revision), complete)
    assert same_weights(client(weights_of, name), new)


def test_an_unknown_revision_is_named(client, complete, name):
    client(push_folder, complete, name)
    with pytest.raises(OSError, match="nowhere is not a valid git identifier"):
        client(weights_of, name, revision="nowhere")


def test_the_commands_take_the_name_of_a_model(hub, client, complete, name, tmp_path):
    client(push_folder, complete, name)
    (tmp_path / "source").write_text("a b c\n", encoding="utf-8")
    arguments = ["--source", str(tmp_path / "source"), "--reference", str(tmp_path / "source"), "--beams", "1"]
    ended = client(command, "evaluate", name, *arguments)
    assert ended.status == 0, ended.err
    assert ended.out.startswith("cased: BLEU ")


WITHOUT_THE_PACKAGE = """
import json, sys
sys.modules["vanilla_transformer"] = None  # importing it raises ModuleNotFoundError
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer
name = sys.argv[1]
model = AutoModelForSeq2SeqLM.from_pretrained(name, trust_remote_code=True)
batch = AutoTokenizer.from_pretrained(name, trust_remote_code=True)(["a b c"], return_tensors="pt")
print(json.dumps([type(model).__module__, model.generate(**batch, max_new_tokens=9).tolist()]))
"""


def test_a_cached_model_opens_offline_without_the_package(hub, client, complete, name, tmp_path):
    client(push_folder, complete, name)
    found = []
    for more in ({}, {"HF_HUB_OFFLINE": "1"}):
        hub.log.clear()
        result = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", WITHOUT_THE_PACKAGE, name],
            cwd=tmp_path,
            env=environment(hub.url, tmp_path / "home", **more),
            capture_output=True,
            encoding="utf-8",
            check=False,
        )
        assert result.returncode == 0, result.stderr[-3000:]
        found.append(json.loads(result.stdout.splitlines()[-1]))
        assert bool(hub.log) is not bool(more)
    assert found[0] == found[1]
    assert found[0][0].startswith("transformers_modules.ann.")


def test_a_pulled_folder_needs_no_hub(hub, client, complete, name, tmp_path):
    folder = client(pull_pushed, complete, name, tmp_path / "pulled")
    hub.log.clear()
    assert same_weights(client(weights_of, folder), complete)
    assert hub.log == []


def pull_pushed(folder: Path, name: str, pulled: Path) -> Path:
    push_folder(folder, name)
    return pull(name, pulled)
