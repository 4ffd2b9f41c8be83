# SPDX-License-Identifier: Apache-2.0
"""What users have by default: hf_xet stores large files.

The Hub here gives it a folder to store them in (local://), a scheme that hf_xet has for tests of its own.
"""

from collections.abc import Iterator

import hf_xet
import pytest
from safetensors.torch import load_file

from tests.hub.hub_client import HubClient, api
from tests.hub.model_folders import same
from vanilla_transformer.hub.publish import push_folder
from vanilla_transformer.hub.pull import pull


@pytest.fixture(scope="module")
def client(running_hub, tmp_path_factory) -> Iterator[HubClient]:
    if "data.local_cas_scheme" not in dict(hf_xet.XetConfig()):
        pytest.skip("this hf_xet has no folder in place of its servers any more")
    client = HubClient(running_hub.url, tmp_path_factory.mktemp("xet-home"))
    yield client
    client.close()


def test_large_weights_go_through_xet(hub, client, make_folder, name, tmp_path):
    folder = make_folder(vocab_size=170_000, seed=3)
    assert (folder / "model.safetensors").stat().st_size > 10_000_000
    client(push_folder, folder, name)
    file = hub.repositories[name].branches["main"].files["model.safetensors"]
    assert hub.xet_hash(file.sha256) is not None
    assert file.sha256 not in hub.objects
    assert same(client(pull, name, tmp_path / "pulled"), folder)
    assert hub.requests("xet-(write|read)-token")
    assert not any(entry.storage for entry in hub.log)


def test_a_second_push_and_both_revisions(hub, client, complete, make_folder, name, tmp_path):
    another = make_folder(seed=4)
    first = client(push_folder, complete, name).rpartition("/")[2]
    client(push_folder, another, name)
    assert same(client(pull, name, tmp_path / "first", revision=first), complete)
    assert same(client(pull, name, tmp_path / "second"), another)
    before = hub.repositories[name].state()
    client(push_folder, another, name)
    assert hub.repositories[name].state() == before


@pytest.mark.parametrize("status", [403, 404, 500, None], ids=str)
def test_an_upload_that_fails_changes_nothing_and_the_next_succeeds(
    hub, client, complete, make_folder, name, request, status
):
    client(push_folder, complete, name)
    repository = hub.repositories[name]
    before, main = repository.state(), repository.branches["main"]
    new = make_folder(seed=300 + request.node.callspec.indices["status"])
    hub.fail("GET .*/xet-write-token", status=status, times=1000)
    with pytest.raises(
        ConnectionError, match=f"^the upload or download for {name} broke off: .*{status or 'error send'}"
    ):
        client(push_folder, new, name)
    assert repository.state() == before
    hub.faults.clear()
    client(push_folder, new, name)
    assert repository.branches["main"].parent is main


def test_upload_folder_of_the_client(hub, client, complete, name, tmp_path):
    """The other way in which the client uploads, which Trainer takes."""
    client(api, "create_repo", name)
    client(api, "upload_folder", repo_id=name, folder_path=complete)
    assert same(client(pull, name, tmp_path / "pulled"), complete)
    assert load_file(tmp_path / "pulled/model.safetensors")
