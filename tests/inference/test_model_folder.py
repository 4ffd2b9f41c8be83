# SPDX-License-Identifier: Apache-2.0
"""Opening model folders: whole ones, and one clear line for each way in which one can be broken."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import vanilla_transformer as package
from vanilla_transformer.inference.model_folder import default_device, load_model_folder
from vanilla_transformer.inference.weight_files import INDEX


def test_a_model_is_ready_to_translate(model_folder):
    model = load_model_folder(model_folder, torch.device("cpu"))
    assert not model.training
    assert model.device.type == "cpu"


def test_the_default_device_is_what_torch_finds():
    expected = torch.accelerator.current_accelerator().type if torch.accelerator.is_available() else "cpu"
    assert default_device().type == expected


def test_importing_this_module_alone_registers_the_models(model_folder):
    script = (
        "import sys; from vanilla_transformer.inference.model_folder import load_model_folder; "
        "print(type(load_model_folder(sys.argv[1])).__module__)"
    )
    command = [sys.executable, "-c", script, str(model_folder)]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=True)
    assert done.stdout.strip().startswith("vanilla_transformer.modeling_")


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    config = package.VanillaTransformerConfig(vocab_size=31, d_model=16, d_ff=32, num_layers=2, num_heads=2)
    package.VanillaTransformerForConditionalGeneration(config).save_pretrained(tmp_path / "m", max_shard_size="5KB")
    return tmp_path / "m"


def changed(name: str, **values) -> Callable[[Path], object]:
    """Other values in a json file of the folder."""

    def change(folder: Path) -> None:
        content = json.loads((folder / name).read_text(encoding="utf-8")) | values
        (folder / name).write_text(json.dumps(content), encoding="utf-8")

    return change


def first_shard(folder: Path) -> Path:
    return min(folder.glob("model-*.safetensors"))


BROKEN = {
    "no config.json": (lambda f: (f / "config.json").unlink(), "is not a model folder: it has no config.json"),
    "config.json cut off": (
        lambda f: (f / "config.json").write_text('{"model', encoding="utf-8"),
        "not a valid JSON file",
    ),
    "another kind": (changed("config.json", model_type="bert"), "model_type='bert', which is no encoder-decoder"),
    "unknown kind": (changed("config.json", model_type="x"), "model_type='x', which transformers does not know"),
    "the other model": (changed("config.json", model_type="rnn_seq2seq"), "do not fit its config.json"),
    "wrong type": (changed("config.json", d_ff="x"), "'d_ff' expected int"),
    "other shapes": (
        changed("config.json", d_ff=64),
        r"12 have another shape, the first is model.decoder.layers.0.feed_forward.linear_1.bias: \(32,\), "
        r"where config.json asks for \(64,\)",
    ),
    "too few layers": (changed("config.json", num_layers=3), "lacks 12 of the model's weights, the first is model.enc"),
    "no weights": (lambda f: (f / INDEX).unlink(), "has no weights: expected model.safetensors"),
    "a shard missing": (
        lambda f: first_shard(f).unlink(),
        "cannot open the model .*: No such file or directory: .*model-00001-of-",
    ),
    "a shard cut off": (lambda f: first_shard(f).write_bytes(first_shard(f).read_bytes()[:90]), "are damaged"),
    "index cut off": (
        lambda f: (f / INDEX).write_text('{"weight_map": ', encoding="utf-8"),
        "is damaged: it has no readable weight_map",
    ),
    "index without a map": (
        lambda f: (f / INDEX).write_text("{}", encoding="utf-8"),
        "is damaged: it has no readable weight_map",
    ),
    "index that leaves": (changed(INDEX, weight_map={"x": "../x.safetensors"}), "'../x.safetensors', which is not a"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_folder_is_one_clear_line(sharded, kind, capfd):
    damage, message = BROKEN[kind]
    damage(sharded)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        load_model_folder(sharded)
    assert str(sharded) in str(error.value)
    assert "\n" not in str(error.value)
    assert "LOAD REPORT" not in capfd.readouterr().err


@pytest.mark.parametrize("path", ["/nowhere/at/all", "./nowhere", "runs/nowhere/model", "~/nowhere", "no where"])
def test_a_folder_that_is_not_there_is_one_clear_line(path):
    with pytest.raises(FileNotFoundError, match="^model folder .*where.* does not exist, nor is it the id of a model"):
        load_model_folder(path)


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(NotADirectoryError, match="model.safetensors is a file; give the model folder that it is in"):
        load_model_folder(tmp_path / "model.safetensors")


def test_a_hub_id_without_the_network_is_one_clear_line():
    with pytest.raises(FileNotFoundError, match="cannot open the model nobody/nothing: there is no such folder, and "):
        load_model_folder("nobody/nothing")
