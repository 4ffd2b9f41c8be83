# SPDX-License-Identifier: Apache-2.0
"""docs/tour.md: its snippets run one after the other, its links lead somewhere, its commands are commands."""

import ast
import re
import shlex
from pathlib import Path

import pytest

from tests.test_readme import REPOSITORY
from vanilla_transformer.cli import _parser

TOUR = REPOSITORY / "docs" / "tour.md"
TEXT = TOUR.read_text(encoding="utf-8")
COMMAND = ".venv/bin/vanilla-transformer "
LARGEST_PICTURE = 300_000  # bytes


def blocks(language: str) -> list[tuple[int, str]]:
    """(lines before it, source) of each block, so that a traceback names the line of the tour."""
    found = re.finditer(rf"^```{language}\n(.*?)^```", TEXT, flags=re.DOTALL | re.MULTILINE)
    return [(TEXT.count("\n", 0, match.start(1)), match[1]) for match in found]


def commands() -> list[list[str]]:
    """Arguments of each command that is shown, without what is piped into it."""
    lines = [line.split("  #")[0].split(" | ")[-1] for _, block in blocks("bash") for line in block.splitlines()]
    assert all(line.startswith(COMMAND) for line in lines)
    return [shlex.split(line)[1:] for line in lines]


def links() -> list[tuple[str, Path]]:
    """(text, file) of each link and picture that is not on the web."""
    found = re.findall(r"\[([^\]]+)\]\(([^)]+)\)", TEXT)
    found += [("", source) for source in re.findall(r'<img src="([^"]+)"', TEXT)]
    return [(text, TOUR.parent / target) for text, target in found if "://" not in target]


def names_in(path: Path) -> set[str]:
    """Classes, functions and values that a Python file defines at its top."""
    names = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            names.add(node.name)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return names


def test_the_snippets_run_one_after_the_other(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(REPOSITORY)  # as the tour says; its configs are there
    namespace = {"__name__": "tour"}
    for lines_before, source in blocks("python"):
        exec(compile("\n" * lines_before + source, TOUR, "exec"), namespace)


def test_every_snippet_shows_something():
    shown = re.compile(r"^ *(assert|assert_close|print)\b", re.MULTILINE)
    assert [lines for lines, source in blocks("python") if not shown.search(source)] == []


@pytest.mark.parametrize("arguments", commands(), ids=shlex.join)
def test_every_command_is_a_command(arguments: list[str]):
    _parser().parse_args(arguments)  # exits with 2 where it is none


def test_links_lead_to_files_and_to_what_they_name():
    for text, path in links():
        assert path.exists(), path
        if text.startswith("`"):
            assert text.strip("`") in names_in(path), f"{text} is not in {path.name}"


def test_configs_that_it_names_exist():
    section = TEXT[TEXT.index("\n## Section 6.2") :]
    rows = [name for name in re.findall(r"`(\w+)`", section) if re.match(r"[abcde]_|big$", name)]
    assert len(rows) > 10
    for name in rows:
        assert (REPOSITORY / "configs" / "paper" / f"{name}.yaml").is_file(), name


def test_no_picture_is_large():
    sizes = {path.name: path.stat().st_size for path in (TOUR.parent / "pictures").iterdir()}
    assert max(sizes.values()) < LARGEST_PICTURE, sizes
    assert {path.name for _, path in links() if path.suffix == ".png"} == set(sizes)  # none is left over
