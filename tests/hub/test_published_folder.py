# SPDX-License-Identifier: Apache-2.0
"""What keeps a folder from being published, found without the Hub."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import save_file

from vanilla_transformer.cli.train import train_and_describe
from vanilla_transformer.hub.published_folder import check_folder, list_files

CLASSES = ("AutoConfig", "AutoModel", "AutoModelForSeq2SeqLM")


@pytest.fixture
def folder(complete: Path, tmp_path: Path) -> Path:
    """A complete folder to damage."""
    return shutil.copytree(complete, tmp_path / "model")


def change_json(path: Path, change: Callable[[dict], object]) -> None:
    content = json.loads(path.read_text("utf-8"))
    change(content)
    path.write_text(json.dumps(content), "utf-8")


def one_problem(folder: Path) -> str:
    (problem,) = check_folder(folder)
    assert "\n" not in problem
    return problem


def test_save_pretrained_and_the_card_make_a_complete_folder(complete: Path):
    assert check_folder(complete) == []


def test_the_folder_of_train_is_complete(tiny_run):
    AcceleratorState._reset_state(reset_partial_state=True)  # as if in a process of its own
    train_and_describe(tiny_run.load())
    assert check_folder(tiny_run.output_dir / "model") == []


def test_all_files_of_a_complete_folder_are_published_with_their_sizes(complete: Path):
    files = {path.relative_to(complete).as_posix(): path for path in complete.rglob("*") if path.is_file()}
    assert list_files(complete) == [(name, len(files[name].read_bytes())) for name in sorted(files)]


def test_files_outside_the_model_are_not_published(complete: Path, folder: Path):
    (folder / "notes.txt").write_text("mine", encoding="utf-8")
    (folder / "unused.py").write_text("", encoding="utf-8")
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints/model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    assert check_folder(folder) == []
    assert list_files(folder) == list_files(complete)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"nowhere does not exist$"):
        check_folder(tmp_path / "nowhere")


def test_an_empty_folder_lacks_everything(tmp_path: Path):
    text = "\n".join(check_folder(tmp_path))
    for file in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "README.md"):
        assert f"{file} is missing" in text
    for file in ("model.safetensors", "custom_generate/generate.py", "LICENSE"):
        assert f"{file} is missing" in text


def test_each_published_file_is_missed(complete: Path, folder: Path):
    for file, _ in list_files(complete):
        content = (folder / file).read_bytes()
        (folder / file).unlink()
        assert one_problem(folder).startswith(f"{file} is missing")
        (folder / file).write_bytes(content)


def test_a_missing_file_of_code_names_its_importer(folder: Path):
    (folder / "loss.py").unlink()
    assert one_problem(folder) == "loss.py is missing: seq2seq_base.py needs it"


def test_code_is_searched_as_transformers_searches(folder: Path):
    with (folder / "loss.py").open("a", encoding="utf-8") as file:
        file.write("\n\ndef later():\n    from .somewhere import x\n")
    assert one_problem(folder) == "somewhere.py is missing: loss.py needs it"
    (folder / "somewhere.py").write_text("x = 1\n", encoding="utf-8")
    assert check_folder(folder) == []
    assert ("somewhere.py", 6) in list_files(folder)


@pytest.mark.parametrize("name", CLASSES)
def test_an_auto_map_must_name_every_class(folder: Path, name: str):
    change_json(folder / "config.json", lambda config: config["auto_map"].pop(name))
    assert one_problem(folder).startswith(f"auto_map in config.json lacks {name}:")


def test_a_config_without_auto_map_lacks_them_all(folder: Path):
    change_json(folder / "config.json", lambda config: config.pop("auto_map"))
    assert [problem.split(":")[0] for problem in check_folder(folder)] == [
        f"auto_map in config.json lacks {name}" for name in CLASSES
    ]


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("elsewhere.Model", "elsewhere.py is missing: auto_map.AutoModel in config.json needs it"),
        ("ann/model--modeling.Model", "auto_map.AutoModel in config.json is 'ann/model--modeling.Model'; it must be"),
        ("sub/modeling.Model", "auto_map.AutoModel in config.json is 'sub/modeling.Model'; it must be"),
        (["loss.Model", None], "auto_map.AutoModel in config.json is ['loss.Model', None]; it must be"),
        ("loss.Model", "loss.py defines no class Model, which auto_map.AutoModel in config.json names"),
    ],
)
def test_an_auto_map_must_point_to_a_class_beside_it(folder: Path, reference: object, said: str):
    change_json(folder / "config.json", lambda config: config["auto_map"].update(AutoModel=reference))
    assert one_problem(folder).startswith(said)


def test_code_that_is_no_python(folder: Path):
    with (folder / "modeling_vanilla_transformer.py").open("a", encoding="utf-8") as file:
        file.write("def\n")
    assert one_problem(folder).startswith("modeling_vanilla_transformer.py is no Python that can be read")


@pytest.mark.parametrize("file", ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", ["", "{", "[]", "{}"])
def test_json_that_is_damaged(folder: Path, file: str, content: str):
    (folder / file).write_text(content, encoding="utf-8")
    assert one_problem(folder).startswith(f"{file} is damaged")


# Weights


@pytest.mark.parametrize("kept", [0, 7, 500, -1])
def test_truncated_weights(folder: Path, kept: int):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    assert one_problem(folder).startswith("model.safetensors is damaged (truncated copy?): ")


@pytest.fixture
def sharded(make_folder) -> Path:
    folder = make_folder(max_shard_size="8KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    return folder


def test_shards_are_published_with_their_index(sharded: Path):
    assert check_folder(sharded) == []
    names = {name for name, _ in list_files(sharded)}
    assert {"model.safetensors.index.json", *(path.name for path in sharded.glob("model-*"))} <= names
    assert "model.safetensors" not in names


def test_a_missing_shard(sharded: Path):
    second = sorted(sharded.glob("model-*"))[1]
    second.unlink()
    assert one_problem(sharded) == f"{second.name} is missing: model.safetensors.index.json names it"


def test_a_shard_of_another_model(sharded: Path):
    second = sorted(sharded.glob("model-*"))[1]
    save_file({"something": torch.zeros(2)}, second)
    assert one_problem(sharded).startswith(f"{second.name} lacks ")


def test_a_truncated_shard(sharded: Path):
    second = sorted(sharded.glob("model-*"))[1]
    second.write_bytes(second.read_bytes()[:-4])
    assert one_problem(sharded).startswith(f"{second.name} is damaged")


def test_an_old_file_of_weights_beside_shards(sharded: Path, complete: Path):
    shutil.copy(complete / "model.safetensors", sharded)
    assert one_problem(sharded).startswith("both model.safetensors and model.safetensors.index.json are there")


@pytest.mark.parametrize("shard", ["../model.safetensors", "pytorch_model.bin", "/etc/passwd"])
def test_an_index_that_names_something_else(sharded: Path, shard: str):
    change_json(sharded / "model.safetensors.index.json", lambda index: index["weight_map"].update(more=shard))
    assert one_problem(sharded).startswith(f"model.safetensors.index.json names {shard!r}, which is not a file")
    assert shard not in dict(list_files(sharded))


def test_an_index_of_nothing(sharded: Path):
    change_json(sharded / "model.safetensors.index.json", lambda index: index.pop("weight_map"))
    assert one_problem(sharded) == "model.safetensors.index.json names no weights"


# Pickles


@pytest.mark.parametrize(
    "file", ["pytorch_model.bin", "optimizer.pt", "a.PTH", "a.pkl", "sub/a.ckpt", "a.pickle", "a.npy", "a.joblib"]
)
def test_pickles_by_name(folder: Path, file: str):
    (folder / file).parent.mkdir(exist_ok=True)
    (folder / file).write_text("", encoding="utf-8")
    assert one_problem(folder).startswith(f"{file} has to be unpickled to be opened")


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_by_content(folder: Path, protocol: int):
    (folder / "vocabulary.txt").write_bytes(pickle.dumps({"a": 1}, protocol=protocol))
    assert one_problem(folder).startswith("vocabulary.txt has to be unpickled")


@pytest.mark.parametrize("zipped", [True, False])
def test_torch_pickles_under_another_name(folder: Path, zipped: bool):
    (folder / "states").mkdir()
    torch.save({"a": torch.zeros(2)}, folder / "states/a.dat", _use_new_zipfile_serialization=zipped)
    assert one_problem(folder).startswith("states/a.dat has to be unpickled")


def test_numpy_pickles_under_another_name(folder: Path):
    with (folder / "a").open("wb") as file:
        np.save(file, np.array([{}], dtype=object))
    with (folder / "b").open("wb") as file:
        np.savez(file, x=np.array([{}], dtype=object))
    assert [problem.split()[0] for problem in check_folder(folder)] == ["a", "b"]


def test_a_pickle_named_as_weights(folder: Path):
    torch.save({"a": torch.zeros(2)}, folder / "model.safetensors")
    assert any(problem.startswith("model.safetensors has to be unpickled") for problem in check_folder(folder))


def test_safetensors_whose_length_looks_like_a_pickle_are_accepted(folder: Path):
    header = b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}'.ljust(0x0280)  # whose length is b"\x80\x02"
    (folder / "other.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    assert check_folder(folder) == []


def test_an_archive_without_pickles_is_accepted(folder: Path):
    shutil.make_archive(str(folder / "notes"), "zip", folder, "LICENSE")
    assert check_folder(folder) == []


# Card and links


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "README.md has no metadata"),
        ("# A model\n", "README.md has no metadata"),
        ("---\n---\n# A model\n", "README.md has no metadata"),
        ("---\nlicense: [\n---\n", "README.md is no valid model card"),
        ("---\n- license\n---\n", "README.md is no valid model card"),
        ("---\nmodel-index:\n- name: x\n  results: 3\n---\n", "README.md is no valid model card"),
        ("---\nlicense: mit\n---\n\ud800", "README.md is no valid model card"),
    ],
)
def test_a_card_without_valid_metadata(folder: Path, text: str, said: str):
    (folder / "README.md").write_bytes(text.encode("utf-8", "surrogatepass"))
    assert one_problem(folder).startswith(said)


@pytest.mark.parametrize("target", ["/etc", "/etc/hostname", "../outside.txt", "nowhere/../../outside.txt"])
def test_a_link_out_of_the_folder(folder: Path, target: str):
    (folder.parent / "outside.txt").write_text("secret", encoding="utf-8")
    (folder / "link").symlink_to(target)
    assert one_problem(folder).startswith("link is a link to something outside of the folder")


def test_a_link_within_the_folder_is_what_it_points_to(folder: Path, complete: Path):
    (folder / "model.safetensors").rename(folder / "blob")
    (folder / "model.safetensors").symlink_to("blob")
    assert check_folder(folder) == []
    assert dict(list_files(folder)) == dict(list_files(complete))


def test_a_folder_may_be_reached_through_a_link(folder: Path, tmp_path: Path):
    (tmp_path / "link").symlink_to(folder)
    assert check_folder(tmp_path / "link") == []


def test_all_problems_are_told_at_once(folder: Path):
    (folder / "LICENSE").unlink()
    (folder / "README.md").write_text("", encoding="utf-8")
    (folder / "model.safetensors").write_bytes(b"")
    (folder / "optimizer.bin").write_bytes(b"")
    assert len(check_folder(folder)) == 4
