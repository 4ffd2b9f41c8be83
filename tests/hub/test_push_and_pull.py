# SPDX-License-Identifier: Apache-2.0
"""Models to the Hub and back, by the real client, uploads through LFS."""

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hub.hub_client import OTHER, WRITE, HubClient, api, command, environment
from tests.hub.hub_repository import Repository
from tests.hub.hub_server import HubServer
from tests.hub.model_folders import same
from vanilla_transformer.data.tokenizer import load_tokenizer
from vanilla_transformer.hub.publish import push_folder
from vanilla_transformer.hub.published_folder import list_files
from vanilla_transformer.hub.pull import pull


def files_of(repository: Repository, revision: str = "main") -> set[str]:
    commit = repository.find(revision)
    assert commit is not None
    return set(commit.files)


def number_of_commits(repository: Repository) -> int:
    return len({commit.oid for commit in repository.commits()})


# Push


def test_a_push_makes_a_repository_of_one_commit(hub: HubServer, client: HubClient, complete, name, tmp_path):
    url = client(push_folder, complete, name, message="The first")
    repository = hub.repositories[name]
    head = repository.branches["main"]
    assert url == f"{hub.url}/{name}/commit/{head.oid}"
    assert (head.title, number_of_commits(repository)) == ("The first", 2)  # after the Hub's own, of .gitattributes
    assert not repository.private
    sent = {path: file.size for path, file in head.files.items() if path != ".gitattributes"}
    assert sent == dict(list_files(complete)) | {"README.md": sent["README.md"]}  # with the id in it
    assert same(client(pull, name, tmp_path / "pulled"), complete)


def test_two_tokenizers_come_back_and_open_by_the_id(client, make_folder, name, tmp_path):
    folder = make_folder(target="A B C D E F G H X Y")
    client(push_folder, folder, name)
    assert same(client(pull, name, tmp_path / "pulled"), folder)
    assert client(encoded_pair, name) == client(encoded_pair, str(folder)) == ([4, 2], [12, 2])


def encoded_pair(name: str) -> tuple[list[int], list[int]]:
    batch = load_tokenizer(name)("a", text_target="X")
    return batch["input_ids"], batch["labels"]


def test_the_code_in_the_card_opens_the_model_by_its_id(hub, client, complete, name, tmp_path):
    client(push_folder, complete, name)
    card = (client(pull, name, tmp_path / "pulled") / "README.md").read_text(encoding="utf-8")
    assert f'\nname = "{name}"\n' in card
    before, after = ((complete / "README.md").read_text(encoding="utf-8").splitlines(), card.splitlines())
    changed = [other for item, other in zip(before, after, strict=True) if item != other]
    assert changed == [f'name = "{name}"', f"vanilla-transformer translate {name} < source.txt > translated.txt"]


def test_large_weights_go_through_lfs_without_the_token(hub, client, make_folder, name, tmp_path):
    folder = make_folder(vocab_size=170_000)
    weights = (folder / "model.safetensors").read_bytes()
    assert len(weights) > 10_000_000
    client(push_folder, folder, name)
    assert hub.objects[hashlib.sha256(weights).hexdigest()] == weights
    assert same(client(pull, name, tmp_path / "pulled"), folder)
    storage = [entry for entry in hub.log if entry.storage]
    assert {entry.method for entry in storage} == {"PUT", "GET"}
    assert {entry.authorization for entry in storage} == {None}


def test_a_second_push_keeps_the_first_revision(hub, client, complete, make_folder, name, tmp_path):
    another = make_folder(seed=2)
    assert not same(another, complete)
    first, second = (client(push_folder, folder, name).rpartition("/")[2] for folder in (complete, another))
    assert hub.repositories[name].find(second).parent.oid == first
    assert same(client(pull, name, tmp_path / "first", revision=first), complete)
    assert same(client(pull, name, tmp_path / "second", revision=second), another)
    assert same(client(pull, name, tmp_path / "newest"), another)


def test_no_commit_without_changes(hub, client, complete, name):
    first = client(push_folder, complete, name)
    assert client(push_folder, complete, name) == first
    assert number_of_commits(hub.repositories[name]) == 2


def test_a_branch_is_created_and_main_stays(hub, client, complete, make_folder, name, tmp_path):
    another = make_folder(seed=2)
    client(push_folder, complete, name)
    main = hub.repositories[name].branches["main"]
    for folder in (complete, another):  # the second time it is there
        client(push_folder, folder, name, revision="trial/one")
    assert hub.repositories[name].branches["main"] is main
    assert same(client(pull, name, tmp_path / "pulled", revision="trial/one"), another)


def test_a_tag_is_not_moved(hub, client, complete, make_folder, name, tmp_path):
    client(push_folder, complete, name)
    client(api, "create_tag", name, tag="v1")
    client(push_folder, make_folder(seed=2), name)
    assert same(client(pull, name, tmp_path / "pulled", revision="v1"), complete)
    before = hub.repositories[name].state()
    with pytest.raises(ValueError, match=f"^'v1' is a tag of {name}, which a push cannot move"):
        client(push_folder, complete, name, revision="v1")
    assert hub.repositories[name].state() == before


def test_a_push_to_a_pull_request(hub, client, complete, make_folder, name):
    client(push_folder, complete, name)
    repository = hub.repositories[name]
    main = repository.branches["main"]
    repository.pull_requests["refs/pr/1"] = main
    client(push_folder, make_folder(seed=2), name, revision="refs/pr/1")
    assert repository.pull_requests["refs/pr/1"].parent is main
    assert list(repository.branches) == ["main"]


def test_stale_weights_are_deleted_in_the_same_commit(hub, client, complete, make_folder, name, tmp_path):
    sharded = make_folder(max_shard_size="8KB")
    client(push_folder, sharded, name)
    assert files_of(hub.repositories[name]) == {*dict(list_files(sharded)), ".gitattributes"}
    client(push_folder, complete, name)
    assert files_of(hub.repositories[name]) == {*dict(list_files(complete)), ".gitattributes"}
    client(push_folder, sharded, name)
    assert files_of(hub.repositories[name]) == {*dict(list_files(sharded)), ".gitattributes"}
    assert number_of_commits(hub.repositories[name]) == 4
    assert same(client(pull, name, tmp_path / "pulled"), sharded)


def test_other_files_of_a_repository_stay(hub, client, complete, make_folder, name):
    client(push_folder, complete, name)
    client(api, "upload_file", path_or_fileobj=b"curve", path_in_repo="curve.svg", repo_id=name)
    client(push_folder, make_folder(seed=2), name)
    assert "curve.svg" in files_of(hub.repositories[name])


def test_an_incomplete_folder_sends_nothing(hub, client, complete, name, tmp_path):
    folder = shutil.copytree(complete, tmp_path / "model")
    (folder / "LICENSE").unlink()
    (folder / "optimizer.bin").write_bytes(b"")
    with pytest.raises(ValueError, match=r"model cannot be published:\n- LICENSE is missing\n- optimizer.bin has "):
        client(push_folder, folder, name)
    assert hub.log == []


def test_a_card_that_the_hub_does_not_accept_makes_no_repository(hub, client, complete, name, tmp_path):
    folder = shutil.copytree(complete, tmp_path / "model")
    (folder / "README.md").write_text("---\nlicense: [mit]\n---\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r'^the Hub does not accept the metadata of README.md: "license" must'):
        client(push_folder, folder, name)
    assert name not in hub.repositories


@pytest.mark.parametrize("repository", ["model", "ann/b/model", "ann/a model", "ann/-"])
def test_a_name_that_is_no_repository_sends_nothing(hub, client, complete, repository):
    with pytest.raises(ValueError, match=repository):
        client(push_folder, complete, repository)
    assert hub.log == []


# Private


def test_a_private_model_is_for_its_owner(hub, client, complete, name, tmp_path):
    client(push_folder, complete, name, private=True)
    assert hub.repositories[name].private
    client(push_folder, complete, name, private=True)  # which it is
    client(push_folder, complete, name)  # which does not make it public
    assert hub.repositories[name].private
    for user in (None, OTHER):
        with pytest.raises(FileNotFoundError, match=f"shows no model {name}: there is none, or it is private; check"):
            client(pull, name, tmp_path / "others", as_user=user)
    assert list(tmp_path.iterdir()) == []
    assert same(client(pull, name, tmp_path / "mine"), complete)


def test_a_public_model_is_not_taken_for_a_private_one(hub, client, complete, make_folder, name):
    client(push_folder, complete, name)
    before = hub.repositories[name].state()
    with pytest.raises(ValueError, match=f"^{name} exists and is public: make it private on the Hub first"):
        client(push_folder, make_folder(seed=2), name, private=True)
    assert hub.repositories[name].state() == before


# Tokens


def test_the_token_of_hf_auth_login(hub, client, complete, name):
    (client.home / "token").write_text(WRITE, encoding="utf-8")
    try:
        client(push_folder, complete, name, as_user=None)
    finally:
        (client.home / "token").unlink()
    assert name in hub.repositories


def test_a_token_that_is_handed_over(hub, client, complete, name, tmp_path):
    client(push_folder, complete, name, private=True, token=WRITE, as_user=None)
    assert same(client(pull, name, tmp_path / "pulled", token=WRITE, as_user=None), complete)


@pytest.mark.parametrize("xet", [True, False], ids=["xet", "lfs"])
def test_the_token_is_not_leaked(hub, complete, name, tmp_path, xet):
    """Not in what the command writes, even when it tells of every request, nor in what the Hub gets or keeps."""
    folder = shutil.copytree(complete, tmp_path / "model")
    loud = environment(
        hub.url, tmp_path / "home", HF_TOKEN=WRITE, HF_DEBUG="1", **({} if xet else {"HF_HUB_DISABLE_XET": "1"})
    )
    push = [sys.executable, "-m", "vanilla_transformer.cli", "push", str(folder), name, "--debug"]
    hub.fail(f"POST /api/models/{name}/commit", status=403, message=f"the token {WRITE} may not")
    refused, done = (
        subprocess.run(push, env=loud, capture_output=True, encoding="utf-8", check=False) for _ in range(2)
    )
    assert (refused.returncode, done.returncode) == (1, 0), refused.stderr + done.stderr
    assert "the token *** may not" in refused.stderr
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [path for path in written if WRITE.encode() in path.read_bytes()] == []
    assert WRITE not in refused.stdout + refused.stderr + done.stdout + done.stderr
    assert {entry.authorization for entry in hub.log if entry.storage} <= {None}
    head = hub.repositories[name].branches["main"]
    assert not any(WRITE.encode() in (file.content or b"") for file in head.files.values())
    assert WRITE not in head.title + "".join(entry.path for entry in hub.log)


# Pull


def add(client: HubClient, name: str, **files: bytes) -> None:
    """A repository that somebody else has made."""
    client(api, "create_repo", name, exist_ok=True)
    for path, content in files.items():
        client(api, "upload_file", path_or_fileobj=content, path_in_repo=path, repo_id=name)


def test_pickles_are_not_pulled(hub, client, complete, name, tmp_path):
    client(push_folder, complete, name)
    add(client, name, **{"pytorch_model.bin": b"x", "states/optimizer.PT": b"x", "a[1]*.txt": b"kept"})
    pulled = client(pull, name, tmp_path / "pulled")
    assert (pulled / "a[1]*.txt").read_bytes() == b"kept"
    (pulled / "a[1]*.txt").unlink()
    assert same(pulled, complete)
    assert hub.requests("pytorch_model|optimizer") == []


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"README.md": b"x"}, "is no model: it has no config.json"),
        ({"config.json": b"{}"}, r"has no model.safetensors \(nor model.safetensors.index.json\)$"),
        (
            {"config.json": b"{}", "pytorch_model.bin": b"x"},
            "it has pytorch_model.bin, which would have to be",
        ),
    ],
    ids=["no-config", "no-weights", "pickles"],
)
def test_a_repository_without_a_model_is_not_pulled(client, name, tmp_path, files, said):
    add(client, name, **files)
    with pytest.raises(ValueError, match=f"^{name} .*{said}"):
        client(pull, name, tmp_path / "pulled")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_use_is_left_alone(hub, client, name, tmp_path):
    (tmp_path / "mine.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(ValueError, match="exists and is not empty; choose another folder$"):
        client(pull, name, tmp_path)
    with pytest.raises(ValueError, match="exists and is not empty; choose another folder$"):
        client(pull, name, tmp_path / "mine.txt")
    assert hub.log == []


def test_pull_into_an_empty_folder_and_into_missing_folders(client, complete, name, tmp_path):
    client(push_folder, complete, name)
    (tmp_path / "empty").mkdir()
    assert same(client(pull, name, tmp_path / "empty"), complete)
    assert same(client(pull, name, tmp_path / "a/b/c"), complete)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "empty"]


def test_an_interrupted_pull_goes_on(hub, client, complete, name, tmp_path):
    client(push_folder, complete, name)
    hub.log.clear()
    weights = r"GET /[0-9a-f]{64}$"
    hub.fail(weights, times=1000)
    with pytest.raises(ConnectionError, match=f"^cannot reach {name} at {hub.url}: "):
        client(pull, name, tmp_path / "pulled")
    assert not (tmp_path / "pulled").exists()
    hub.faults.clear()
    assert same(client(pull, name, tmp_path / "pulled"), complete)
    assert [path.name for path in tmp_path.iterdir()] == ["pulled"]
    got = [entry.path for entry in hub.requests(r"GET .*/resolve/") if entry.status == 200]
    assert len(got) == len(set(got))  # what had arrived was not fetched again


# The client's own ways to read what was pushed


def read_card(name: str) -> dict:
    from huggingface_hub import ModelCard

    return ModelCard.load(name).data.to_dict()


def test_the_card_and_the_snapshot(hub, client, complete, name):
    client(push_folder, complete, name)
    assert client(read_card, name) == read_card(str(complete / "README.md"))
    snapshot = Path(client(api, "snapshot_download", name))
    (snapshot / ".gitattributes").unlink()
    assert same(snapshot, complete)


def test_a_snapshot_that_is_there_needs_no_request(hub, client, complete, name):
    client(push_folder, complete, name)
    snapshot = client(api, "snapshot_download", name)
    hub.log.clear()
    assert client(api, "snapshot_download", name, local_files_only=True) == snapshot
    assert hub.log == []


# As commands


def test_the_commands(hub, client, complete, make_folder, name, tmp_path):
    pushed = client(command, "push", str(complete), name, "--private", "--message", "By command")
    head = hub.repositories[name].branches["main"]
    assert (pushed.status, pushed.out) == (0, f"published: {hub.url}/{name}/commit/{head.oid}\n")
    assert (head.title, hub.repositories[name].private) == ("By command", True)
    assert client(command, "push", str(make_folder(seed=2)), name, "--revision", "two").status == 0
    pulled = client(command, "pull", name, str(tmp_path / "pulled"), "--revision", "main")
    assert (pulled.status, pulled.out) == (0, f"model folder: {tmp_path / 'pulled'}\n")
    assert same(tmp_path / "pulled", complete)


def test_a_dry_run_sends_no_request(hub, client, complete, name):
    assert client(command, "push", str(complete), name, "--dry-run").status == 0
    assert hub.log == []
