# SPDX-License-Identifier: Apache-2.0
"""Folders and repositories of others: nothing of them is executed, and nothing outside of them is read or written.

What would run leaves a file behind, the canary.
"""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file, save_file

from tests.conftest import write_reversals
from tests.hub.hub_client import api, command
from tests.hub.hub_repository import File
from vanilla_transformer.cli import main
from vanilla_transformer.data.tokenizer import load_tokenizer
from vanilla_transformer.hub.publish import push_folder
from vanilla_transformer.hub.published_folder import check_folder
from vanilla_transformer.hub.pull import pull
from vanilla_transformer.inference.model_folder import load_model_folder

COMMANDS = ("translate", "evaluate", "finetune", "average", "push")
INDEX, WEIGHTS = "model.safetensors.index.json", "model.safetensors"
OUTSIDE = "outside.safetensors"


class Canary:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


@pytest.fixture
def folder(complete: Path, tmp_path: Path) -> Path:
    """A complete folder to damage, with weights outside of it that would fit."""
    shutil.copyfile(complete / WEIGHTS, tmp_path / OUTSIDE)
    return shutil.copytree(complete, tmp_path / "model")


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    return tmp_path / "canary"


@pytest.fixture
def run(folder: Path, tmp_path: Path, capsys, monkeypatch) -> Callable[[str], tuple[int, str]]:
    """One of `COMMANDS` with the folder; its status, and what it said on stderr. All of standard input is "y"."""
    files = write_reversals(tmp_path, "pairs", 12)
    config = tmp_path / "finetune.yaml"
    training = {"output_dir": str(tmp_path / "tuned"), "max_steps": 1, "disable_tqdm": True}
    config.write_text(
        yaml.safe_dump({"model": str(folder), "data": {"train": files}, "training": training}), encoding="utf-8"
    )
    (tmp_path / "yes").write_text("y\n" * 9, encoding="utf-8")
    arguments = {
        "translate": [str(folder), "--engine", "torch"],
        "evaluate": [str(folder), "--engine", "torch", "--source", files["source"], "--reference", files["target"]],
        "finetune": [str(config)],
        "average": [str(folder), str(folder), "--output", str(tmp_path / "averaged")],
        "push": [str(folder), "ann/model", "--dry-run"],
    }

    def call(name: str) -> tuple[int, str]:
        with (tmp_path / "yes").open(encoding="utf-8") as file:
            monkeypatch.setattr("sys.stdin", file)
            status = main([name, *arguments[name]])
        return status, capsys.readouterr().err

    return call


def change_json(path: Path, **values) -> None:
    content = json.loads(path.read_text("utf-8")) if path.exists() else {}
    path.write_text(json.dumps(content | values), "utf-8")


def refused(error: str, command: str, said: str) -> None:
    """In its last line, and without a traceback."""
    *before, last = error.splitlines()
    assert last.startswith(f"vanilla-transformer {command}: error: ")
    assert said in "\n".join([*before, last])
    assert "Traceback" not in error


# Code


def plant_code(folder: Path, canary: Path) -> None:
    """Wherever transformers would look for code: modules of auto_map, decoding, and the relative imports of both."""
    source = f"import os\nos.mkdir({str(canary)!r})\n"
    for path in [*folder.glob("*.py"), *folder.glob("custom_generate/*.py")]:
        path.write_text(source + path.read_text("utf-8"), "utf-8")
    (folder / "evil.py").write_text(f"{source}class Evil:\n    pass\n", "utf-8")
    auto_map = json.loads((folder / "config.json").read_text("utf-8"))["auto_map"]
    change_json(folder / "config.json", auto_map=auto_map | {"AutoTokenizer": ["evil.Evil", None]})
    change_json(
        folder / "tokenizer_config.json",
        auto_map={"AutoTokenizer": ["evil.Evil", "evil.Evil"]},
        tokenizer_class="Evil",
    )
    change_json(folder / "generation_config.json", custom_generate=str(folder))


@pytest.mark.parametrize("name", COMMANDS)
def test_code_of_a_folder_is_not_executed(folder, canary, run, name):
    plant_code(folder, canary)
    status, error = run(name)
    assert not canary.exists()
    assert status == 0 or "error: " in error


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "push"])
def test_code_of_an_unknown_kind_of_model_is_not_executed(folder, canary, run, name):
    plant_code(folder, canary)
    auto_map = dict.fromkeys(("AutoConfig", "AutoModel", "AutoModelForSeq2SeqLM"), "evil.Evil")
    change_json(folder / "config.json", model_type="evil", auto_map=auto_map)
    status, error = run(name)
    assert status == 1
    refused(error, name, "has model_type='evil', which transformers does not know")
    assert not canary.exists()


def put_on_hub(hub, client, folder: Path, name: str) -> None:
    """All of a folder, as somebody may do who does not use our `push`."""
    client(api, "create_repo", name)
    files = [path for path in folder.rglob("*") if path.is_file()]
    head = hub.repositories[name].branches["main"]
    head.files.update({path.relative_to(folder).as_posix(): File.small(path.read_bytes()) for path in files})


def test_code_of_a_repository_is_not_executed(hub, client, folder, canary, name, tmp_path):
    plant_code(folder, canary)
    put_on_hub(hub, client, folder, name)
    client(pull, name, tmp_path / "pulled")
    (tmp_path / "source").write_text("a b c\n", encoding="utf-8")
    texts = ["--source", str(tmp_path / "source"), "--reference", str(tmp_path / "source")]
    ended = client(command, "evaluate", name, *texts, "--engine", "torch", "--beams", "1")
    assert "Traceback" not in ended.err
    assert not canary.exists()


# Pickles


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "push"])
def test_weights_as_a_pickle_are_refused(folder, canary, run, name):
    (folder / WEIGHTS).unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Canary(canary)))
    status, error = run(name)
    assert status == 1
    refused(error, name, "it has pytorch_model.bin, a pickle: opening it can run any code")
    assert not canary.exists()


@pytest.mark.parametrize(
    "file", ["training_args.bin", "optimizer.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth", "a.pkl", "a.npy"]
)
def test_other_pickles_are_not_opened_and_not_published(folder, canary, run, file):
    (folder / file).write_bytes(pickle.dumps(Canary(canary)))
    assert run("translate")[0] == 0
    status, error = run("push")
    assert status == 1
    refused(error, "push", f"{file} has to be unpickled to be opened, which can run any code")
    assert not canary.exists()


def as_safetensors(folder: Path, canary: Path) -> None:
    (folder / WEIGHTS).write_bytes(pickle.dumps(Canary(canary)))


def as_a_shard(folder: Path, canary: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / "model.bin").write_bytes(pickle.dumps(Canary(canary)))
    (folder / INDEX).write_text(
        json.dumps({"metadata": {}, "weight_map": {"lm_head.weight": "model.bin"}}), encoding="utf-8"
    )


def as_an_adapter(folder: Path, canary: Path) -> None:
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(Canary(canary)))
    (folder / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "base_model_name_or_path": "x/y"}), encoding="utf-8"
    )


def as_other_weights(folder: Path, canary: Path) -> None:
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(Canary(canary)))
    change_json(folder / "config.json", transformers_weights="adapter_model.bin")


@pytest.mark.parametrize(
    ("plant", "said"),
    [
        (as_safetensors, "are damaged"),
        (as_a_shard, "names 'model.bin', which is not a .safetensors file of the folder"),
        (as_an_adapter, "has an adapter_config.json: merge the adapter into its model, and open that"),
        (as_other_weights, "has transformers_weights='adapter_model.bin': only model.safetensors is read; remove it"),
    ],
)
def test_a_pickle_in_disguise_is_refused(folder, canary, plant, said):
    plant(folder, canary)
    with pytest.raises(ValueError, match=said) as error:
        load_model_folder(folder)
    assert "\n" not in str(error.value)
    assert not canary.exists()


@pytest.mark.parametrize("plant", [as_a_shard, as_an_adapter, as_other_weights])
def test_a_pickle_in_a_repository_is_refused(hub, client, folder, canary, name, tmp_path, plant):
    plant(folder, canary)
    put_on_hub(hub, client, folder, name)
    with pytest.raises(ValueError, match="which is not a .safetensors file|adapter_config.json|transformers_weights"):
        client(open_model, name)
    assert not canary.exists()


def test_a_repository_of_pickles_is_refused(hub, client, folder, canary, name):
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Canary(canary)))
    put_on_hub(hub, client, folder, name)
    with pytest.raises(FileNotFoundError, match=f"^{name} has no model.safetensors; if it has weights as a pickle: "):
        client(open_model, name)
    assert not canary.exists()


def open_model(name: str) -> None:
    load_model_folder(name)


# Names


@pytest.mark.parametrize(
    "file", ["../outside.safetensors", "{tmp}/outside.safetensors", "sub/../../outside.safetensors"]
)
def test_an_index_cannot_leave_its_folder(folder, tmp_path, run, file):
    names = load_file(folder / WEIGHTS).keys()
    (folder / WEIGHTS).unlink()
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, file.format(tmp=tmp_path, name=OUTSIDE))}
    (folder / INDEX).write_text(json.dumps(index), encoding="utf-8")
    for name in COMMANDS:
        status, error = run(name)
        assert status == 1
        refused(error, name, "which is not a")


def test_transformers_weights_cannot_leave_the_folder(folder):
    change_json(folder / "config.json", transformers_weights="../outside.safetensors")
    with pytest.raises(ValueError, match=r"transformers_weights='\.\./outside\.safetensors': only model"):
        load_model_folder(folder)


@pytest.mark.parametrize("file", [WEIGHTS, "config.json", "tokenizer.json", "generation_config.json"])
def test_a_link_out_of_the_folder_is_refused(folder, tmp_path, run, file):
    (folder / file).rename(tmp_path / "secret")
    (folder / file).symlink_to(tmp_path / "secret")
    for name in COMMANDS:
        status, error = run(name)
        assert status == 1
        refused(error, name, file)


def test_links_of_the_hub_cache_are_followed(hub, client, complete, name):
    client(push_folder, complete, name)
    snapshot = client(snapshot_of, name)
    assert (snapshot / WEIGHTS).is_symlink()
    load_model_folder(snapshot)


def snapshot_of(name: str) -> Path:
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(name))


@pytest.mark.parametrize("file", ["../escaped.txt", "a/../../escaped.txt", "/tmp/escaped.txt"])
def test_a_repository_cannot_write_elsewhere(hub, client, complete, name, tmp_path, file):
    client(push_folder, complete, name)
    hub.repositories[name].branches["main"].files[file] = File.small(b"x")
    with pytest.raises(ValueError, match="filename") as error:
        client(pull, name, tmp_path / "deep" / "pulled")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "deep" / "pulled").exists()
    assert list(tmp_path.rglob("escaped.txt")) == []


def test_names_in_code_cannot_leave_the_folder(folder, tmp_path):
    (tmp_path / "secret.py").write_text("secret = 1\n", encoding="utf-8")
    with (folder / "loss.py").open("a", encoding="utf-8") as file:
        file.write('\n"""\nfrom ./../../secret import x\n"""\n')
    assert check_folder(folder) == ["loss.py imports './../../secret', which is no file beside it"]


def test_a_kernel_of_the_hub_is_not_fetched(folder):
    change_json(folder / "config.json", attn_implementation="evil/kernel")
    with pytest.raises(ValueError, match="attn_implementation='evil/kernel': code of the Hub is not executed; remove"):
        load_model_folder(folder)


def test_corpora_named_by_a_model_are_not_read(folder, tmp_path):
    change_json(folder / "config.json", data={"train": {"path": str(tmp_path / "secret.tsv")}})
    load_model_folder(folder)
    load_tokenizer(folder)


def test_tokenizer_files_cannot_leave_the_folder(folder, tmp_path):
    (folder / "tokenizer.json").rename(tmp_path / "tokenizer.json")
    change_json(folder / "tokenizer_config.json", tokenizer_file="../tokenizer.json", vocab_file="../tokenizer.json")
    with pytest.raises(FileNotFoundError, match="has no tokenizer: tokenizer.json is missing"):
        load_tokenizer(folder)


def test_sharded_weights_still_open(folder):
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    save_file(tensors, folder / "model-00001-of-00001.safetensors", {"format": "pt"})
    weight_map = dict.fromkeys(tensors, "model-00001-of-00001.safetensors")
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}), encoding="utf-8")
    load_model_folder(folder)
