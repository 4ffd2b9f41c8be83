# SPDX-License-Identifier: Apache-2.0
"""Exported folders on the Hub, each opened by the code that the card shows."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.families import FAMILIES
from tests.hub.hub_client import Ended, HubClient, command, environment
from tests.hub.hub_server import HubServer
from tests.hub.model_folders import targets_of_example, write_exportable_folder
from vanilla_transformer.data.tokenizer import TokenizerConfig, train_tokenizer
from vanilla_transformer.hub.exported_folders import RUNTIMES, describe_exports, opening_code
from vanilla_transformer.hub.model_card import ModelCardFacts, write_model_card
from vanilla_transformer.hub.published_folder import check_folder
from vanilla_transformer.hub.pull import pull

OPTIMUM = ["optimum==2.1.0", "optimum-onnx==0.1.0", "transformers==4.57.3", "huggingface_hub==0.36.0"]
OPTIMUM += ["tokenizers==0.22.1"]
WITHOUT_THE_PACKAGE = "import sys; sys.modules['vanilla_transformer'] = None\n"


@pytest.fixture(scope="module")
def folder(model_folder, tmp_path_factory) -> Path:
    """A model with its card."""
    folder = tmp_path_factory.mktemp("exported") / "reverser"
    return write_exportable_folder(model_folder, folder)


@pytest.fixture(scope="module")
def expected(folder: Path) -> list[str]:
    return targets_of_example(folder)


def push(client: HubClient, folder: Path, name: str, *more: str) -> Ended:
    return client(command, "push", str(folder), name, *more)


def files_of(hub: HubServer, name: str) -> dict[str, Any]:
    return hub.repositories[name].branches["main"].files


def code_of(card: str, title: str) -> str:
    found = re.search(rf"^### {title}: .*?^```python\n(.*?)^```$", card, re.DOTALL | re.MULTILINE)
    assert found is not None, title
    return found[1]


def card_of(hub: HubServer, name: str) -> str:
    return files_of(hub, name)["README.md"].content.decode()


def run_code(code: str, hub: HubServer, tmp_path: Path, **variables: str) -> list[str]:
    """Run the code in a process without this package, and return the list that it prints last."""
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", WITHOUT_THE_PACKAGE + code],
        cwd=tmp_path,
        env=environment(hub.url, tmp_path / "home", **variables),
        stdin=subprocess.DEVNULL,  # nobody answers whether code may run
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return eval(result.stdout.splitlines()[-1])


def test_push_with_exports_that_open_as_the_card_says(hub, client, folder, name, expected, tmp_path):
    ended = push(client, folder, name, "--with", "marian,ctranslate2")
    assert ended.status == 0, ended.err
    head = hub.repositories[name].branches["main"]
    assert head.parent.parent is None  # after the Hub's own commit
    exported = {path.partition("/")[0] for path in head.files if "/" in path} - {"custom_generate"}
    assert exported == {"marian", "ctranslate2"}
    card = card_of(hub, name)
    assert "optimum" not in card
    for runtime in exported:
        code = code_of(card, RUNTIMES[runtime].title)
        assert f'"{name}"' in code
        assert run_code(code, hub, tmp_path) == expected
    # By `pull` the model itself arrives.
    pulled = client(pull, name, tmp_path / "pulled")
    assert {path.name for path in pulled.iterdir()} == {path.name for path in folder.iterdir()}
    assert check_folder(pulled) == []


@pytest.mark.slow
def test_exports_open_in_optimum_and_its_version_of_transformers(hub, client, folder, name, expected, tmp_path):
    installed = Path("build", "versions", "optimum").resolve()
    if not installed.is_dir():
        pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(installed)]
        subprocess.run([*pip, *OPTIMUM], check=True)
    ended = push(client, folder, name, "--with", "marian,onnx")
    assert ended.status == 0, ended.err
    for title in ("ONNX", "MarianMT"):  # both in an older version of transformers
        assert run_code(code_of(card_of(hub, name), title), hub, tmp_path, PYTHONPATH=str(installed)) == expected


def test_a_later_push_without_exports_deletes_them(hub, client, folder, name):
    for options in (["--with", "marian"], []):
        assert push(client, folder, name, *options).status == 0
        assert ("marian/config.json" in files_of(hub, name)) == bool(options)
        assert ("## Other runtimes" in card_of(hub, name)) == bool(options)


def test_a_dry_run_lists_the_exports(hub, client, folder, name):
    ended = push(client, folder, name, "--with", "marian", "--dry-run")
    assert {"marian/README.md", "marian/model.safetensors", "model.safetensors"} <= set(ended.out.split())
    assert hub.log == []


def test_an_export_that_cannot_be_sends_nothing(hub, client, name, tmp_path):
    model = FAMILIES[1].model()
    model.save_pretrained(tmp_path / "rnn")
    write_tokenizer_and_card(tmp_path / "rnn")
    ended = push(client, tmp_path / "rnn", name, "--with", "marian")
    assert ended.status == 1
    assert ended.err.splitlines() == [ended.err.strip()]
    assert "model_type='rnn_seq2seq': MarianMT is for Transformers" in ended.err
    assert hub.log == []


def write_tokenizer_and_card(folder: Path) -> None:
    train_tokenizer(["a b c"], TokenizerConfig(kind="symbols")).save_pretrained(folder)
    write_model_card(folder, facts=ModelCardFacts(model_name="rnn", parameters=1, model_type="rnn_seq2seq"))


# The text of cards


@pytest.fixture
def exports(tmp_path: Path) -> dict[str, Path]:
    """Exported folders of a Transformer, as far as their cards read them."""
    folders = {runtime: tmp_path / runtime for runtime in RUNTIMES}
    for folder in folders.values():
        folder.mkdir()
    (folders["onnx"] / "decoder_with_past_model.onnx").touch()
    return folders


def test_the_section_is_replaced_and_removed(exports):
    del exports["ctranslate2"]
    card = "# a\n\n## How to use\n\nText.\n\n## Training data\n\nMore.\n"
    once = describe_exports(card, exports, "ann/a")
    assert re.findall(r"^##.*", once, re.MULTILINE) == [
        *("## How to use", "## Other runtimes", "### MarianMT: `marian/`", "### ONNX: `onnx/`", "## Training data"),
    ]
    assert describe_exports(once, exports, "ann/a") == once
    assert describe_exports(once, {}, "ann/a") == card


def test_a_foreign_card_has_the_section_at_its_end(exports):
    card = describe_exports("# theirs\n", exports, "ann/a")
    assert card.startswith("# theirs\n\n## Other runtimes\n")
    assert 'lines = ["One line of the source."]' in card


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("repo_id", [None, "ann/a"])
def test_the_code_is_python_with_the_place_filled_in(exports, runtime: str, repo_id: str | None):
    code = opening_code(runtime, exports[runtime], '["a"]', repo_id)
    compile(code, runtime, "exec")
    assert "SUBFOLDER" not in code
    assert ("ann/a" in code, 'name = "."' in code) == (repo_id is not None, repo_id is None)
    assert (f'"{runtime}' in code) == (repo_id is not None)


@pytest.mark.parametrize("repo_id", [None, "ann/a"])
def test_an_rnn_in_onnx_opens_with_its_own_class(exports, repo_id: str | None):
    (exports["onnx"] / "decoder_with_past_model.onnx").unlink()
    code = opening_code("onnx", exports["onnx"], '["a"]', repo_id)
    compile(code, "onnx", "exec")
    assert "OnnxTranslator(Path(name))" in code
    assert "optimum" not in code
    assert ("snapshot_download(" in code) == (repo_id is not None)
