# SPDX-License-Identifier: Apache-2.0
"""A token of the Hub is in nothing that a command writes or says, nor in what the Hub gets beside the header."""

import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.conftest import TinyRun, write_reversals
from tests.hub.hub_client import READ, WRITE, command, environment
from vanilla_transformer.training.configuration import load_run_config
from vanilla_transformer.training.finetuning import load_finetuning_config

Command = Callable[..., subprocess.CompletedProcess]


@pytest.fixture(params=["HF_TOKEN", "hf auth login"])
def run(request, hub, tmp_path) -> Command:
    """The installed command, by somebody who has a token; `--debug` shows whole tracebacks."""
    variables = environment(hub.url, tmp_path / "home", HF_HUB_DISABLE_XET="1")
    if request.param == "HF_TOKEN":
        variables["HF_TOKEN"] = WRITE
    else:
        (tmp_path / "home").mkdir()
        (tmp_path / "home" / "token").write_text(WRITE, encoding="utf-8")

    def call(*arguments: str, **more: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-m", "vanilla_transformer.cli", *arguments, "--debug"],
            env=variables | more,
            cwd=tmp_path,
            capture_output=True,
            encoding="utf-8",
            timeout=600,
            check=False,
        )

    return call


def holding(folder: Path, *secrets: str) -> list[str]:
    """The files with one of them, in whatever encoding of bytes; that of the login itself may."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path != folder / "home" / "token"]
    return [str(path) for path in paths if any(secret.encode() in path.read_bytes() for secret in secrets)]


@pytest.mark.slow
def test_a_token_is_not_leaked_by_training_tuning_pushing_and_failing(hub, run: Command, name, tmp_path):
    trained = TinyRun(tmp_path)
    said = []

    def ends(status: int, *arguments: str, **more: str) -> None:
        ended = run(*arguments, **more)
        assert ended.returncode == status, ended.stderr[-3000:]
        said.append(ended.stdout + ended.stderr)

    ends(0, "train", str(trained.config), *trained.validation(), "training.trackers=[tensorboard]")
    model = trained.output_dir / "model"
    tuning = {"output_dir": str(tmp_path / "tuned"), "max_steps": 2, "save_steps": 1, "report_to": "tensorboard"}
    data = {side: write_reversals(tmp_path, side, 20) for side in ("train", "validation")}
    (tmp_path / "tune.yaml").write_text(
        yaml.safe_dump({"model": str(model), "data": data, "training": tuning}), encoding="utf-8"
    )
    ends(0, "finetune", str(tmp_path / "tune.yaml"))
    assert list(tmp_path.rglob("events.out.tfevents.*")) != []
    for folder in (model, tmp_path / "tuned" / "model"):
        ends(0, "push", str(folder), name)
    ends(0, "pull", name, str(tmp_path / "pulled"))
    for status in (401, 403, 500):
        hub.fail(f"POST /api/models/{name}/commit", status=status, message=f"not with {WRITE}")
        ends(1, "push", str(model), name, "--message", "again", "--revision", f"r{status}")
    hub.fail(f"GET /api/models/{name}", times=1000)
    ends(1, "pull", name, str(tmp_path / "never"))
    ends(1, "translate", name)
    hub.faults.clear()
    assert holding(tmp_path, WRITE) == []
    assert [text for text in said if WRITE in text] == []
    head = hub.repositories[name].branches["main"]
    assert not any(WRITE.encode() in (file.content or hub.objects[file.sha256]) for file in head.files.values())
    assert not any(WRITE in entry.path for entry in hub.log)


@pytest.mark.parametrize("arguments", [["push", "{model}", "{name}"], ["pull", "{name}", "p"], ["translate", "{name}"]])
def test_a_token_in_an_address_is_not_repeated(client, complete, arguments):
    """Whosever it is, and however short."""
    name = f"https://ann:{READ}@127.0.0.1/ann/model"
    ended = client(command, *(part.format(model=complete, name=name) for part in arguments))
    assert ended.status == 1
    assert ended.err.endswith(", not an address\n")
    assert ended.err.count("\n") == 1
    assert READ not in ended.out + ended.err


def test_a_token_in_a_file_is_refused_and_not_repeated(tmp_path):
    files = write_reversals(tmp_path, "train", 3)
    training = {"output_dir": str(tmp_path), "hub_token": WRITE}
    (tmp_path / "tune.yaml").write_text(
        yaml.safe_dump({"model": "m", "data": {"train": files}, "training": training}), encoding="utf-8"
    )
    with pytest.raises(ValueError, match=r"training.hub_token=\*\*\*: a token has no place in a file; log in") as error:
        load_finetuning_config(tmp_path / "tune.yaml")
    assert WRITE not in str(error.value)


TOKEN = "hf_" + "AbCdEfGhIjKlMnOpQ" * 2  # as long as the Hub's own


@pytest.mark.parametrize("secret", [TOKEN, "https://ann:pass=word@hub/x"], ids=["token", "password"])
@pytest.mark.parametrize("load", [load_run_config, load_finetuning_config])
@pytest.mark.parametrize(
    ("text", "overrides", "place"),
    [
        ("data:\n  name: from {}\n", [], "configuration {}/run.yaml, line 2: "),
        ("data:\n  train: {{dataset: 'https://hub/x?token={}'}}\n", [], "configuration {}/run.yaml, line 2: "),
        ("{}: 1\n", [], "configuration {}/run.yaml, line 1: "),
        ("data: [\n'{}\n", [], "configuration {}/run.yaml, line 2: "),  # no YAML at all
        ("extends: base.yaml\n", [], "configuration {}/base.yaml, line 1: "),
        ("", ["data.name={}"], "override data.name=***: "),
        ("", ["{}"], "override ***=***: "),
    ],
    ids=["text", "address", "key", "broken", "base", "override", "no override"],
)
def test_a_secret_in_a_configuration_is_refused_and_not_repeated(load, text, overrides, place, secret, tmp_path):
    (tmp_path / "run.yaml").write_text(text.format(secret), encoding="utf-8")
    (tmp_path / "base.yaml").write_text(f"data: {{license: '{secret}'}}\n", encoding="utf-8")
    with pytest.raises(ValueError, match="a token or password has no place in a configuration") as caught:
        load(tmp_path / "run.yaml", [override.format(secret) for override in overrides])
    assert str(caught.value).startswith(place.format(tmp_path))
    said = "".join(traceback.format_exception(caught.value))
    assert TOKEN not in said
    assert "word@" not in said


def test_names_that_are_no_secrets_are_left_alone(tmp_path):
    names = {"name": "hf_multi30k_english_to_german_of_flickr", "license": "https://hub/datasets/x@main"}
    (tmp_path / "run.yaml").write_text(
        yaml.safe_dump({"data": names, "training": {"output_dir": "a", "max_epochs": 1}}), encoding="utf-8"
    )
    data = load_run_config(tmp_path / "run.yaml").data
    assert (data.name, data.license) == tuple(names.values())
