# SPDX-License-Identifier: Apache-2.0
"""An error is one line with its remedy, and an exit status."""

import gc
import sys
from pathlib import Path

import pytest
from huggingface_hub import constants

from vanilla_transformer.console.arguments import UsageError
from vanilla_transformer.console.running import run_program, without_garbage_collection


def failing(error: Exception):
    def work():
        raise error

    return work


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (ValueError("two\nlines"), 1, "two lines"),
        (UsageError("wrong"), 2, "wrong"),
        (RuntimeError(), 1, "RuntimeError"),
        (ModuleNotFoundError("No module named 'x'", name="x"), 1, "No module named 'x'"),
    ],
)
def test_error_is_one_line(capsys, error, status: int, said: str):
    assert run_program(failing(error), "program") == status
    assert capsys.readouterr().err == f"program: error: {said}\n"


def test_missing_module_names_the_programs_extra(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    error = ModuleNotFoundError("No module named 'datasets'", name="datasets")
    assert run_program(failing(error), "vanilla-transformer compare", extra="comparison") == 1
    assert "error: compare needs datasets: pip install 'vanilla-transformer[comparison]'\n" in capsys.readouterr().err


HOME = Path("/home/user")


@pytest.mark.parametrize(
    ("path", "is_cache"),
    [
        (HOME, True),  # which does not exist: its folders cannot be made
        (HOME / ".cache/huggingface/datasets/x", True),
        (HOME / "my.yaml", False),
        (Path("my.yaml"), False),
    ],
)
def test_unwritable_cache_names_the_remedy(capsys, monkeypatch, path: Path, is_cache: bool):
    monkeypatch.setattr(constants, "HF_HOME", str(HOME / ".cache/huggingface"))
    monkeypatch.delenv("HF_DATASETS_CACHE")
    assert run_program(failing(PermissionError(13, "Permission denied", str(path))), "program") == 1
    error = capsys.readouterr().err
    assert ("set HF_HOME to a folder that can be written" in error) is is_cache
    assert error.count("\n") == 1


def test_unwritable_datasets_cache_names_the_remedy(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "data"))
    error = PermissionError(13, "Permission denied", str(tmp_path / "data" / "x"))
    run_program(failing(error), "program")
    assert "set HF_DATASETS_CACHE to a folder that can be written" in capsys.readouterr().err


def test_debug_raises_the_error():
    with pytest.raises(ValueError, match="no"):
        run_program(failing(ValueError("no")), "program", debug=True)


@pytest.mark.parametrize("error", [None, ImportError])
def test_collection_goes_on_afterwards_without_what_was_imported(error):
    try:
        with without_garbage_collection():
            assert not gc.isenabled()
            imported = [[]]
            if error:
                raise error
    except ImportError:
        pass
    assert gc.isenabled()
    assert not any(thing is imported for thing in gc.get_objects())  # it is frozen


def test_a_command_leaves_no_frozen_objects_to_the_next_test():
    """tests/conftest.py undoes it: a cycle that is frozen would never be collected."""
    assert gc.get_freeze_count() == 0
