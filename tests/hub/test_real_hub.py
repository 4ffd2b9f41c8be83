# SPDX-License-Identifier: Apache-2.0
"""The one test against the real Hub, for whoever lends it a token that may write:

VANILLA_TRANSFORMER_HUB_TOKEN=hf_… pytest -m slow tests/hub/test_real_hub.py

It makes a private repository, and deletes it.
"""

import os
import subprocess
import sys
import uuid

import pytest

from tests.hub.hub_client import environment

VARIABLE = "VANILLA_TRANSFORMER_HUB_TOKEN"
STEPS = """
import sys
from huggingface_hub import HfApi
from vanilla_transformer.hub.publish import push_folder
from vanilla_transformer.hub.pull import pull

first, second, pulled, name = sys.argv[1:]
api = HfApi()
name = f"{api.whoami()['name']}/{name}"
try:
    commits = [push_folder(folder, name, private=True).rpartition("/")[2] for folder in (first, second, second)]
    assert commits[1] == commits[2] != commits[0], commits
    push_folder(first, name, revision="trial")
    pull(name, f"{pulled}/first", revision=commits[0])
    pull(name, f"{pulled}/second")
    pull(name, f"{pulled}/trial", revision="trial")
finally:
    api.delete_repo(name, missing_ok=True)
"""


@pytest.mark.slow
def test_pushes_and_pulls(make_folder, tmp_path):
    token = os.environ.get(VARIABLE)
    if not token:
        pytest.skip(f"{VARIABLE} is not set: no token for the real Hub")
    # Through Xet, unsharded and sharded: what the small Hub of the other tests cannot vouch for.
    folders = [make_folder(seed=1, max_shard_size="8KB"), make_folder(seed=2)]
    variables = environment("https://huggingface.co", tmp_path / "home", HF_TOKEN=token)
    name = f"vanilla-transformer-test-{uuid.uuid4().hex[:8]}"
    result = subprocess.run(
        [sys.executable, "-c", STEPS, *map(str, folders), str(tmp_path), name],
        env={key: value for key, value in variables.items() if key not in ("NO_PROXY", VARIABLE)},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert result.returncode == 0, result.stderr.replace(token, "***")[-3000:]
    for pulled, folder in (("first", folders[0]), ("second", folders[1]), ("trial", folders[0])):
        for path in folder.rglob("*"):
            if path.is_file():
                assert (tmp_path / pulled / path.relative_to(folder)).read_bytes() == path.read_bytes()
    shards = sorted(path.name for path in (tmp_path / "second").glob("model*.safetensors*"))
    assert shards == ["model.safetensors"]  # those of the first push are gone
