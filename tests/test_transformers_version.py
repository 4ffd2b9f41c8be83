# SPDX-License-Identifier: Apache-2.0
"""The package and a folder's code refuse unsupported versions of transformers in one line."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import transformers

import vanilla_transformer as package
from vanilla_transformer.transformers_version import BELOW, MINIMUM, check_transformers_version

REPOSITORY = Path(__file__).parents[1]


@pytest.mark.parametrize("version", ["4.57.1", "5.0.0", "5.16.9", "6.0.0", "6.0.0.dev0", "10.1", "5"])
def test_other_versions_are_refused_in_one_line(version: str):
    with pytest.raises(ImportError, match=f"this is {re.escape(version)}: pip install -U 'transformers>=") as caught:
        check_transformers_version(version)
    assert "\n" not in str(caught.value)
    assert "`vanilla-transformer export FOLDER OUT --to marian`" in str(caught.value)


@pytest.mark.parametrize("version", [transformers.__version__, "5.17.0", "5.17.0.dev0", "5.99.1", "5.24.0+local"])
def test_supported_versions_pass(version: str):
    check_transformers_version(version)


def test_the_range_is_that_of_the_project():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert f"transformers>={MINIMUM},<{BELOW}" in project["dependencies"]


def test_the_model_card_names_the_oldest():
    assert f"transformers ({MINIMUM} or newer)" in (REPOSITORY / "model_card.md").read_text(encoding="utf-8")


ANOTHER_VERSION = "import sys, transformers; transformers.__version__ = '5.16.0'\n"
WITHOUT_THE_PACKAGE = "sys.modules['vanilla_transformer'] = None\n"
OPEN_FOLDER = """
from transformers import AutoModelForSeq2SeqLM
for folder in sys.argv[1:]:
    try:
        AutoModelForSeq2SeqLM.from_pretrained(folder, trust_remote_code=True)
    except ImportError as error:
        print(error)
"""
IMPORT_PACKAGE = """
try:
    import vanilla_transformer
except ImportError as error:
    print(error)
"""


def printed_by(code: str, tmp_path: Path, *arguments: str) -> str:
    environment = os.environ | {"HF_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, encoding="utf-8", check=True, env=environment).stdout


def test_a_published_folder_refuses_another_version(tmp_path):
    models = {
        package.VanillaTransformerForConditionalGeneration: package.VanillaTransformerConfig(vocab_size=9, d_model=8),
        package.RNNSeq2SeqForConditionalGeneration: package.RNNSeq2SeqConfig(vocab_size=9, hidden_size=8),
    }
    for model, config in models.items():
        model(config).save_pretrained(tmp_path / model.__name__)
    code = ANOTHER_VERSION + WITHOUT_THE_PACKAGE + OPEN_FOLDER
    lines = printed_by(code, tmp_path, *(str(tmp_path / model.__name__) for model in models)).splitlines()
    assert len(lines) == len(models)
    for line in lines:
        assert line.startswith("vanilla_transformer needs transformers >= 5.17 and < 6, this is 5.16.0: ")


def test_the_package_refuses_another_version(tmp_path):
    (line,) = printed_by(ANOTHER_VERSION + IMPORT_PACKAGE, tmp_path).splitlines()
    assert line.startswith("vanilla_transformer needs transformers >= 5.17 and < 6, this is 5.16.0: ")
