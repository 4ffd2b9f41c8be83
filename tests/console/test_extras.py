# SPDX-License-Identifier: Apache-2.0
"""Commands without their extras print one line that says what to install."""

import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from vanilla_transformer.cli import SUBCOMMANDS
from vanilla_transformer.console.extras import MODULE_OF, explain_missing

REPOSITORY = Path(__file__).parents[2]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# Every package of an extra that a command needs; names with brackets are of other extras.
PACKAGES = {
    re.match(r"[\w-]+", requirement)[0]
    for extra, requirements in PROJECT["optional-dependencies"].items()
    for requirement in requirements
    if extra not in ("dev", "docs") and "[" not in requirement
}

# Runs a program as if nothing of any extra were installed.
WITHOUT_EXTRAS = f"""
import sys
from importlib import import_module
from importlib.machinery import PathFinder
HIDDEN = set({sorted(MODULE_OF.get(name, name) for name in PACKAGES)!r})
HIDDEN -= {{"tokenizers", "tqdm", "yaml"}}  # which transformers brings

class WithoutExtras(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in HIDDEN else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = WithoutExtras
sys.exit(import_module(sys.argv[1]).main(sys.argv[2:]))
"""


def without_extras(module: str, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-W", "ignore", "-c", WITHOUT_EXTRAS, f"vanilla_transformer.{module}", *arguments]
    return subprocess.run(command, cwd=REPOSITORY, input="a b\n", capture_output=True, encoding="utf-8", check=False)


PROGRAMS = {
    "train": (["cli", "train", "configs/small.yaml"], "accelerate", "training"),
    "finetune": (["cli", "finetune", "configs/finetune.yaml"], "accelerate", "training"),
    "evaluate": (["cli", "evaluate", "--hypothesis", "LICENSE", "--reference", "LICENSE"], "accelerate", "training"),
    "average": (["cli", "average", "a", "b", "--output", "runs/c"], "accelerate", "training"),
    "compare": (["cli", "compare"], "accelerate", "comparison"),
    "prepare": (["cli", "prepare", "prepare"], "datasets", "preparation"),
    "sweep": (["cli", "sweep", "sweep"], "accelerate", "tuning"),
    "quickstart": (["cli", "quickstart"], "accelerate", "quickstart"),
    "plot": (["cli", "plot", "positions"], "matplotlib", "visualization"),
    "demo": (["demo.command", "runs/model"], "gradio", "demo"),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_missing_extra_is_one_line_with_the_remedy(name: str):
    arguments, module, extra = PROGRAMS[name]
    done = without_extras(*arguments)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.endswith(f" needs {module}: pip install 'vanilla-transformer[{extra}]'")


def test_translate_needs_no_extra(model_folder):
    done = without_extras("cli", "translate", str(model_folder), "--quiet")
    assert (done.returncode, done.stderr, done.stdout.count("\n")) == (0, "", 1)


def test_push_needs_no_extra(model_folder):
    done = without_extras("cli", "push", str(model_folder), "user/name", "--dry-run")
    assert "pip install" not in done.stderr
    assert "README.md is missing" in done.stderr or done.returncode == 0


def missing(name: str) -> ModuleNotFoundError:
    return ModuleNotFoundError(f"No module named {name!r}", name=name)


def test_own_extra_is_preferred_if_it_installs_the_module(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    for extra, named in (("comparison", "comparison"), ("visualization", "training"), (None, "training")):
        assert explain_missing(missing("datasets.io"), "it", extra) == (
            f"it needs datasets: pip install 'vanilla-transformer[{named}]'"
        )


@pytest.mark.parametrize("name", ["no_such_module", "datasets.no_such_part", "torch.no_such_part"])
def test_no_extra_is_named_for_other_modules(name: str):
    assert explain_missing(missing(name), "it", "training") is None


@pytest.mark.parametrize(
    "name", sorted(PACKAGES - {"deepspeed", "eflomal"})
)  # which are not among the packages for developers
def test_packages_are_called_as_they_are_imported(name: str):
    assert name in map(str.lower, packages_distributions()[MODULE_OF.get(name, name)])


@pytest.mark.parametrize("name", SUBCOMMANDS)
def test_extra_installs_what_the_command_needs(name: str):
    command = SUBCOMMANDS[name]
    for module in command.NEEDS:
        assert f"[{command.EXTRA}]" in str(_explained(module, command.EXTRA))


def _explained(module: str, extra: str | None) -> str | None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, module, None)
        return explain_missing(missing(module), "it", extra)
