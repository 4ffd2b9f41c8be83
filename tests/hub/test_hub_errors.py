# SPDX-License-Identifier: Apache-2.0
"""When the Hub refuses, fails or cannot be reached: one line, nothing half done, and the next try succeeds."""

import socket
from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.hub.hub_client import OTHER, READ, HubClient, command
from vanilla_transformer.hub.publish import push_folder
from vanilla_transformer.hub.pull import pull

ALWAYS = 1000
BUSY = "^the Hub has had too many requests"
SAYS_NO = r"^the token in use may not do this to {name} \(injected\); use one that may write to it$"
FAILED = r"^the Hub failed with status {status} at {name} \(injected\); try again later$"
CHANGED = r"^{name} was changed by somebody else in the meantime \(injected\); run the command again$"
CUT_OFF = "^cannot reach {name} at http://127.0.0.1:.*; check the network$"

CREATE, LOOK, PLAN = "POST /api/repos/create", "GET /api/models/{name}", "POST /api/models/{name}/preupload"
BATCH, STORE, VERIFY = "POST /{name}.git/info/lfs/objects/batch", "PUT /", "POST /{name}.git/info/lfs/verify"
COMMIT, CARD = "POST /api/models/{name}/commit", "POST /api/validate-yaml"


@pytest.mark.parametrize(
    ("request_line", "status", "raised", "said"),
    [
        (CARD, 503, ConnectionError, FAILED),
        (CREATE, 429, ConnectionError, BUSY),
        (CREATE, 500, ConnectionError, FAILED),
        (LOOK, 500, ConnectionError, FAILED),
        (PLAN, 403, PermissionError, SAYS_NO),
        (PLAN, 429, ConnectionError, BUSY),
        (PLAN, 503, ConnectionError, FAILED),
        (BATCH, 403, PermissionError, SAYS_NO),
        (BATCH, 502, ConnectionError, FAILED),
        (STORE, 403, PermissionError, SAYS_NO),
        (STORE, 500, ConnectionError, FAILED),
        (STORE, None, ConnectionError, CUT_OFF),
        (VERIFY, 404, ConnectionError, r"^the Hub refused a request for {name} with status 404 \(injected\)$"),
        (COMMIT, 400, ConnectionError, r"^the Hub refused a request for {name} with status 400 \(injected\)$"),
        (COMMIT, 401, PermissionError, "^the Hub asks for a valid token for {name}"),
        (COMMIT, 403, PermissionError, SAYS_NO),
        (COMMIT, 409, ConnectionError, CHANGED),
        (COMMIT, 412, ConnectionError, CHANGED),
        (COMMIT, 429, ConnectionError, BUSY),
        (COMMIT, 500, ConnectionError, FAILED),
        (COMMIT, None, ConnectionError, CUT_OFF),  # in the middle of what is sent
    ],
)
def test_a_push_that_fails_changes_nothing_and_the_next_succeeds(
    hub, client, complete, make_folder, name, request, request_line, status, raised, said
):
    client(push_folder, complete, name)
    repository = hub.repositories[name]
    before, main = repository.state(), repository.branches["main"]
    new = make_folder(seed=100 + request.node.callspec.indices["request_line"])  # weights that the Hub has not had
    hub.fail(request_line.format(name=name), status=status, times=ALWAYS)
    with pytest.raises(raised, match=said.format(name=name, status=status)):
        client(push_folder, new, name)
    assert repository.state() == before
    hub.faults.clear()
    client(push_folder, new, name)
    assert repository.branches["main"].parent is main


@pytest.mark.parametrize("request_line", [PLAN, BATCH, STORE, VERIFY])
@pytest.mark.parametrize("status", [503, None], ids=["busy", "cut-off"])
def test_the_client_retries(hub, client, complete, make_folder, name, request, request_line, status):
    seeds = request.node.callspec.indices
    hub.fail(request_line.format(name=name), status=status, times=2)
    client(push_folder, make_folder(seed=200 + 10 * seeds["request_line"] + seeds["status"]), name)
    assert [fault.times for fault in hub.faults] == [0]
    assert len(list(hub.repositories[name].commits())) == 2


def test_a_commit_whose_response_was_lost_is_not_repeated(hub, client, complete, make_folder, name):
    client(push_folder, complete, name)
    new = make_folder(seed=2)
    hub.fail(COMMIT.format(name=name), after_work=True)
    with pytest.raises(ConnectionError, match=CUT_OFF.format(name=name)):
        client(push_folder, new, name)
    made = hub.repositories[name].state()
    assert client(push_folder, new, name).endswith(made["main"])
    assert hub.repositories[name].state() == made


def test_a_concurrent_commit_is_not_overwritten(hub, client, complete, make_folder, name):
    client(push_folder, complete, name)
    branches = hub.repositories[name].branches
    other = replace(branches["main"], oid="0" * 40, parent=branches["main"])
    hub.fail(COMMIT.format(name=name), meanwhile=lambda: branches.update(main=other))
    with pytest.raises(ConnectionError, match=f"^{name} was changed by somebody else in the meantime .A commit"):
        client(push_folder, make_folder(seed=2), name)
    assert branches == {"main": other}


# Rights


@pytest.mark.parametrize(
    ("user", "said"),
    [
        (None, "asks for a valid token for {name}: log in with `hf auth login` or set HF_TOKEN$"),
        ("hf_wrong", "asks for a valid token for {name}: log in"),
        (READ, r"may not do this to {name} \(Forbidden: this token of ann may only read"),
        (OTHER, "may not do this to {name} .*rights to create a model under the namespace ann"),
    ],
)
def test_who_may_not_push(hub, client, complete, name, user, said):
    with pytest.raises(PermissionError, match=said.format(name=name)):
        client(push_folder, complete, name, as_user=user)
    assert name not in hub.repositories


@pytest.mark.parametrize("user", [READ, OTHER])
def test_who_may_not_push_to_what_is_there(hub, client, complete, make_folder, name, user):
    client(push_folder, complete, name)
    before = hub.repositories[name].state()
    with pytest.raises(PermissionError, match=f"^the token in use may not do this to {name}"):
        client(push_folder, make_folder(seed=2), name, as_user=user)
    with pytest.raises(PermissionError, match=f"^the token in use may not do this to {name}"):
        client(push_folder, make_folder(seed=2), name, revision="new", as_user=user)
    assert hub.repositories[name].state() == before


def test_a_gated_model(hub, client, complete, name, tmp_path):
    client(push_folder, complete, name)
    hub.repositories[name].gated = True
    with pytest.raises(PermissionError, match=f"^{name} is gated: ask for access at {hub.url}/{name}, then log in"):
        client(pull, name, tmp_path / "pulled", as_user=OTHER)
    assert not (tmp_path / "pulled").exists()


# Pull


@pytest.mark.parametrize(
    ("status", "raised", "said"),
    [
        (401, PermissionError, "^the Hub asks for a valid token for {name}"),
        (403, PermissionError, "^the token in use may not do this to {name}"),
        (404, ConnectionError, "^the Hub refused a request for {name} with status 404"),
        (429, ConnectionError, BUSY),
        (500, ConnectionError, FAILED),
        (None, ConnectionError, CUT_OFF),
    ],
)
@pytest.mark.parametrize("what", ["GET /api/models/{name}", "GET /api/models/{name}/tree", "HEAD /{name}/resolve"])
def test_a_pull_that_fails_leaves_no_folder_and_the_next_succeeds(
    hub, client, complete, name, tmp_path, what, status, raised, said
):
    client(push_folder, complete, name)
    hub.fail(what.format(name=name), status=status, times=ALWAYS)
    for _ in range(2):  # the second finds what the first has left
        with pytest.raises(raised, match=said.format(name=name, status=status)):
            client(pull, name, tmp_path / "pulled")
        assert not (tmp_path / "pulled").exists()
    hub.faults.clear()
    client(pull, name, tmp_path / "pulled")
    assert [path.name for path in tmp_path.iterdir()] == ["pulled"]


def test_an_incomplete_pull_is_not_taken_for_the_model(hub, client, complete, name, tmp_path):
    """The client, without network, would return the folder as it is."""
    sha = client(push_folder, complete, name).rpartition("/")[2]
    left = tmp_path / f".unfinished-pulled-{sha[:12]}"
    left.mkdir()
    (left / "config.json").write_text("{}", encoding="utf-8")
    hub.fail(f"GET /api/models/{name}/tree", status=503, times=ALWAYS)
    with pytest.raises(ConnectionError, match=f"^the upload or download for {name} broke off: .* did not arrive; try"):
        client(pull, name, tmp_path / "pulled")
    assert not (tmp_path / "pulled").exists()
    hub.faults.clear()
    client(pull, name, tmp_path / "pulled")
    assert (tmp_path / "pulled/config.json").read_bytes() == (complete / "config.json").read_bytes()


@pytest.mark.parametrize("revision", ["nowhere", "0" * 40])
def test_an_unknown_revision(client, complete, name, tmp_path, revision):
    client(push_folder, complete, name)
    with pytest.raises(FileNotFoundError, match=f"^{name} has no branch, tag or commit '{revision}'$"):
        client(pull, name, tmp_path / "pulled", revision=revision)


@pytest.mark.parametrize("user", [None, OTHER])
def test_an_unknown_model(hub, client, name, tmp_path, user):
    with pytest.raises(FileNotFoundError, match=f"^{hub.url} shows no model {name}: there is none, or it is private"):
        client(pull, name, tmp_path / "pulled", as_user=user)


# No network


@pytest.fixture(scope="module")
def cut_off(tmp_path_factory) -> Iterator[HubClient]:
    """A client that finds nobody where the Hub should be."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{free.getsockname()[1]}"
    client = HubClient(endpoint, tmp_path_factory.mktemp("cut-off"))
    yield client
    client.close()


@pytest.fixture(scope="module")
def offline(running_hub, tmp_path_factory) -> Iterator[HubClient]:
    client = HubClient(running_hub.url, tmp_path_factory.mktemp("offline"), HF_HUB_OFFLINE="1")
    yield client
    client.close()


@pytest.mark.parametrize("what", ["push", "pull"])
def test_no_network(cut_off, complete, tmp_path, what):
    arguments = [str(complete), "ann/model"] if what == "push" else ["ann/model", str(tmp_path / "pulled")]
    ended = cut_off(command, what, *arguments)
    assert (ended.status, ended.out) == (1, "")
    start = f"vanilla-transformer {what}: error: cannot reach ann/model at http://127.0.0.1:"
    assert ended.err.startswith(start)
    assert ended.err.endswith("; check the network\n")
    assert ended.err.count("\n") == 1


@pytest.mark.parametrize("what", ["push", "pull"])
def test_offline_by_choice(hub, offline, complete, tmp_path, what):
    arguments = [str(complete), "ann/model"] if what == "push" else ["ann/model", str(tmp_path / "pulled")]
    ended = offline(command, what, *arguments)
    expected = f"vanilla-transformer {what}: error: cannot reach ann/model: HF_HUB_OFFLINE is set; unset it\n"
    assert (ended.status, ended.out, ended.err) == (1, "", expected)
    assert hub.log == []


def test_translating_with_a_model_of_the_hub_without_network(cut_off):
    ended = cut_off(command, "translate", "ann/model")
    assert (ended.status, ended.out) == (1, "")
    last = ended.err.splitlines()[-1]  # the client has told of each of its tries
    expected = "cannot open the model ann/model: there is no such folder, and on the Hub: We couldn't connect"
    assert last.startswith(f"vanilla-transformer translate: error: {expected}")
