# SPDX-License-Identifier: Apache-2.0
"""The two rules of CONTRIBUTING.md: what may be published stays flat, and imports point upwards in its table."""

import ast
import re
import sys
from pathlib import Path

import pytest
from transformers.dynamic_module_utils import get_relative_import_files, get_relative_imports

REPOSITORY = Path(__file__).parents[1]
NAME = "vanilla_transformer"
PACKAGE = REPOSITORY / NAME

# A file at the root of the package may be uploaded with a model. A new one belongs here only if a model imports it;
# whatever else it is belongs in a folder.
MAY_BE_PUBLISHED = {
    "attention.py",
    "configuration_base.py",
    "configuration_rnn_seq2seq.py",
    "configuration_vanilla_transformer.py",
    "decoder.py",
    "dropout.py",
    "embeddings.py",
    "ensemble.py",
    "fused_decoder.py",
    "generation.py",
    "language_tags.py",
    "linear.py",
    "loss.py",
    "modeling_rnn_seq2seq.py",
    "modeling_vanilla_transformer.py",
    "packed_linear.py",
    "pipeline_translation.py",
    "recurrence.py",
    "recurrent_decoder.py",
    "search.py",
    "seq2seq_base.py",
    "tiled_attention.py",
    "transformers_differences.py",
    "transformers_version.py",
}
NEVER_PUBLISHED = {"__init__.py"}
MAY_BE_IMPORTED_BY_PUBLISHED_FILES = {"torch", "transformers", "huggingface_hub", *sys.stdlib_module_names}

TABLE = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")
# Folder → what it may import besides itself, in the order of the table: each may import the folders above it.
FOLDERS = dict(re.findall(r"^\| `vanilla_transformer/(\w+)/` \|.*\| ([^|]+) \|$", TABLE, flags=re.MULTILINE))
ORDER = [*FOLDERS, "scripts"]
WITHOUT_MODELS = [folder for folder, imports in FOLDERS.items() if imports.startswith(("nothing", "no model"))]

SOURCES = sorted(PACKAGE.rglob("*.py")) + sorted((REPOSITORY / "scripts").glob("*.py"))


def imports_in(source: str) -> list[tuple[int, str, list[str]]]:
    """(dots, module, names) of every import of a source, those within functions included."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found.extend((0, alias.name, []) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            found.append((node.level, node.module or "", [alias.name for alias in node.names]))
    return found


def violations_at_the_root(file: str, source: str) -> list[str]:
    """Imports of a file at the root of the package that rule 1 forbids."""
    found = []
    for dots, module, names in imports_in(source):
        statement = f"{'.' * dots}{module} ({', '.join(names)})"
        if dots == 0:
            if module.split(".")[0] not in MAY_BE_IMPORTED_BY_PUBLISHED_FILES:
                found.append(f"{file} imports {statement}: only torch, transformers, huggingface_hub and the stdlib")
        elif file in NEVER_PUBLISHED and dots == 1 and (PACKAGE / f"{module.replace('.', '/')}.py").is_file():
            continue  # what stays here may name the folders
        elif dots > 1 or not module or "." in module or not (PACKAGE / f"{module}.py").is_file():
            found.append(f"{file} imports {statement}: only `from .name import x` of a file beside it")
        elif module.startswith("modeling_"):
            found.append(f"{file} imports {statement}: the parts of a model do not import it")
    return found


def violations_in_folders(folder: str, file: str, source: str) -> list[str]:
    """Imports of a file in a folder of the package, or in scripts, that rule 2 forbids."""
    found = []
    for dots, module, names in imports_in(source):
        if dots:
            found.append(f"{file} imports {'.' * dots}{module}: folders import the package by its full name")
            continue
        first, *rest = module.split(".")
        if first == "scripts":
            found.append(f"{file} imports {module}: nothing imports scripts")
        if first != NAME:
            continue
        # `import vanilla_transformer` and `from vanilla_transformer import x` may name a folder or a model
        targets = [target for target in rest[:1] or names or [""] if target != folder]
        if not all(may_import(folder, target) for target in targets):
            found.append(f"{file} imports {module} ({', '.join(names)}): not below {folder}")
    return found


def may_import(folder: str, target: str) -> bool:
    if target not in FOLDERS:  # a model or one of its parts
        return folder not in WITHOUT_MODELS
    return ORDER.index(target) < ORDER.index(folder)


def violations(path: Path) -> list[str]:
    file, source = str(path.relative_to(REPOSITORY)), path.read_text(encoding="utf-8")
    if path.parent == PACKAGE:
        return violations_at_the_root(path.name, source)
    folder = "scripts" if path.parent.name == "scripts" else path.relative_to(PACKAGE).parts[0]
    return violations_in_folders(folder, file, source)


def test_only_known_files_are_at_the_root():
    files = {path.name for path in PACKAGE.glob("*.py")}
    assert files == MAY_BE_PUBLISHED | NEVER_PUBLISHED, "see the comment at MAY_BE_PUBLISHED"


def test_only_known_folders_are_in_the_package():
    folders = {path.relative_to(PACKAGE).parts[0] for path in PACKAGE.glob("*/**/*.py")}
    assert folders == set(FOLDERS), "a new folder needs its row in the table of CONTRIBUTING.md"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_imports_follow_the_rules(path: Path):
    assert violations(path) == []


@pytest.mark.parametrize("file", sorted(MAY_BE_PUBLISHED))
def test_transformers_finds_only_files_that_may_be_published(file: str):
    # Its regular expression reads docstrings and comments too; what it finds and does not exist, it fails on.
    found = get_relative_imports(PACKAGE / file)
    assert {f"{name}.py" for name in found} <= MAY_BE_PUBLISHED


@pytest.mark.parametrize("file", [path.name for path in PACKAGE.glob("configuration_*_*.py")])
def test_a_configuration_names_all_files_that_it_reaches(file: str):
    # transformers 4 copies no other file of a folder, and would fail on one before the version is refused in a line.
    reached = {Path(path).name for path in get_relative_import_files(PACKAGE / file)}
    assert reached == {f"{name}.py" for name in get_relative_imports(PACKAGE / file)}


@pytest.mark.parametrize(
    "source",
    [
        "from . import attention",
        "from .. import attention",
        "from .data.corpus import load_corpus",
        "from .data import corpus",
        "from .nowhere import x",
        "import vanilla_transformer",
        "from vanilla_transformer.attention import MultiHeadAttention",
        "def f():\n    import yaml",
        "from .modeling_vanilla_transformer import VanillaTransformerModel",
    ],
)
def test_the_root_rule_rejects(source: str):
    assert violations_at_the_root("attention.py", source)


@pytest.mark.parametrize(
    ("folder", "source"),
    [
        ("data", "import vanilla_transformer"),
        ("console", "from vanilla_transformer.attention import MultiHeadAttention"),
        ("console", "from vanilla_transformer.cli import main"),
        ("visualization", "from vanilla_transformer.attention import MultiHeadAttention"),
        ("data", "from vanilla_transformer import VanillaTransformerConfig"),
        ("data", "from vanilla_transformer.configuration_vanilla_transformer import VanillaTransformerConfig"),
        ("data", "from vanilla_transformer.inference.translate import translate_lines"),
        ("evaluation", "from vanilla_transformer import training"),
        ("evaluation", "def f():\n    import vanilla_transformer.training.loop"),
        ("training", "from ..data.corpus import load_corpus"),
        ("training", "from .loop import train"),
        ("hub", "from vanilla_transformer.cli import main"),
        ("demo", "from vanilla_transformer.cli.decoding_options import open_translator"),
        ("evaluation", "from vanilla_transformer.demo.shown_model import ShownModel"),
        ("cli", "import scripts.train"),
    ],
)
def test_the_folder_rule_rejects(folder: str, source: str):
    assert violations_in_folders(folder, f"{folder}/example.py", source)
