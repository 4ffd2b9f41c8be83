# SPDX-License-Identifier: Apache-2.0
"""Every test starts from the same seeds, without the network and without anything the user has cached."""

import ipaddress
import os
import random
import sys
import tempfile

import pytest

# Hugging Face libraries read their variables when they are imported, so this comes before any such import.
for name in [name for name in os.environ if name.startswith("HF_")]:
    del os.environ[name]  # a token or an endpoint of the user's
_home = tempfile.TemporaryDirectory(prefix="vanilla-transformer-tests-")  # removed when the process ends
os.environ["HF_HOME"] = _home.name
os.environ["HF_DATASETS_CACHE"] = os.path.join(_home.name, "datasets")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_EVALUATE_OFFLINE"] = "1"

in_xdist_worker = "PYTEST_XDIST_WORKER" in os.environ
if in_xdist_worker:
    os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start

import numpy as np  # noqa: E402 -- after the environment, like torch
import torch  # noqa: E402

if in_xdist_worker:
    torch.set_num_threads(1)  # there is a worker for each core


def _refuse_other_machines(event: str, arguments: tuple) -> None:
    """An audit hook; RuntimeError, because clients of the network retry or swallow every OSError."""
    if event != "socket.connect":
        return
    address = arguments[1]
    if isinstance(address, tuple) and not _is_loopback(address[0]):  # other addresses are paths of local sockets
        raise RuntimeError(f"a test tried to connect to {address}: tests are offline")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name
        return host == "localhost"


sys.addaudithook(_refuse_other_machines)


@pytest.fixture(autouse=True)
def seeds() -> None:
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
