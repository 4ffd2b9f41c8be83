# SPDX-License-Identifier: Apache-2.0
"""Decoding after a fork: the child has lost OpenMP's threads, whatever the parent computed on them."""

import json
import os
import subprocess
import sys

import pytest

SCRIPT = """
import json, os, signal
import torch
from vanilla_transformer.inference.native.forks import compute_after_fork

torch.set_num_threads(2)
torch.ones(512, 512) @ torch.ones(512, 512)
reader, writer = os.pipe()
if os.fork() == 0:
    signal.alarm(60)
    compute_after_fork()
    product = torch.ones(512, 512) @ torch.ones(512, 512)
    os.write(writer, json.dumps([torch.get_num_threads(), product[0, 0].item()]).encode())
    os._exit(0)
os.close(writer)
with open(reader, "rb") as answer:
    print(answer.read().decode())
"""


@pytest.mark.skipif(os.name != "posix", reason="only POSIX forks")
def test_forked_child_computes_on_one_thread():
    """The parent computed a product, without this package; without the call the child would wait forever."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, encoding="utf-8", timeout=100, check=True
    )
    assert json.loads(done.stdout) == [1, 512.0]
    assert "was forked, without the 2 threads of its parent, and computes on one" in done.stderr
