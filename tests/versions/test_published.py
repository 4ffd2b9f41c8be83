# SPDX-License-Identifier: Apache-2.0
"""The oldest and the newest supported version open each other's folders; `make test-versions` shows all of them."""

import pytest

from tests.versions.published import MODELS, REFUSED, SUPPORTED, TOLERANCE, WAYS, compare, refusal, write_folders
from vanilla_transformer.transformers_version import MINIMUM

pytestmark = pytest.mark.slow


def test_the_oldest_and_the_newest_version_open_each_others_folders():
    found = compare((SUPPORTED[0], SUPPORTED[-1]))
    assert len(found) == len(MODELS) * len(WAYS) * 2 * 2
    assert {key: value for key, value in found.items() if value > TOLERANCE} == {}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("version", REFUSED)
def test_other_versions_are_refused_in_one_line(version, way, tmp_path):
    write_folders(SUPPORTED[-1], tmp_path / "folders", tmp_path)
    line = refusal(version, way, tmp_path / "folders" / MODELS[0], tmp_path)
    assert line.startswith(f"vanilla_transformer needs transformers >= {MINIMUM}")
    assert "\n" not in line


def test_the_oldest_version_is_the_projects():
    assert SUPPORTED[0].startswith(f"{MINIMUM}.")
