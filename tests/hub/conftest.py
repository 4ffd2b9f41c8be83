# SPDX-License-Identifier: Apache-2.0
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.hub.hub_client import USERS, HubClient
from tests.hub.hub_server import HubServer
from tests.hub.model_folders import write_model_folder

MakeFolder = Callable[..., Path]


@pytest.fixture(scope="session")
def running_hub(tmp_path_factory) -> Iterator[HubServer]:
    with HubServer(tmp_path_factory.mktemp("xet")) as server:
        server.tokens = dict(USERS)
        yield server


@pytest.fixture
def hub(running_hub: HubServer) -> HubServer:
    """The Hub with an empty log and without faults; repositories of other tests are there."""
    running_hub.log.clear()
    running_hub.faults.clear()
    return running_hub


@pytest.fixture(scope="session")
def client(running_hub: HubServer, tmp_path_factory) -> Iterator[HubClient]:
    """Uploads through LFS."""
    client = HubClient(running_hub.url, tmp_path_factory.mktemp("home"), HF_HUB_DISABLE_XET="1")
    yield client
    client.close()


@pytest.fixture
def name(request) -> str:
    """Of a repository of ann's that no other test uses."""
    return f"ann/{re.sub(r'[^a-z0-9]+', '-', request.node.name.lower())[:90].strip('-')}"


@pytest.fixture(scope="session")
def make_folder(tmp_path_factory) -> MakeFolder:
    """Writes a complete model folder; the arguments are those of `write_model_folder`."""
    return lambda **arguments: write_model_folder(tmp_path_factory.mktemp("made") / "model", **arguments)


@pytest.fixture(scope="session")
def complete(make_folder: MakeFolder) -> Path:
    """A complete model folder; not to be written to."""
    return make_folder()
