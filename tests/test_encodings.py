# SPDX-License-Identifier: Apache-2.0
"""Every text file and every pipe is opened with its encoding by name: by default it is that of the user's locale."""

import ast
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
SOURCES = sorted(
    path for folder in ("vanilla_transformer", "scripts", "tests") for path in (REPOSITORY / folder).rglob("*.py")
)

# Where `encoding` stands among the positional arguments, and `mode`, if there is one.
FUNCTIONS = {
    "open": (3, 1),
    "TextIOWrapper": (1, None),
    "NamedTemporaryFile": (2, 0),
    "TemporaryFile": (2, 0),
    "fdopen": (3, 1),
}
METHODS = {"open": (2, 0), "read_text": (0, None), "write_text": (1, None)}
BINARY_BY_DEFAULT = {"NamedTemporaryFile", "TemporaryFile"}
NO_FILES = {"Image", "ShownModel", "os"}  # whose `open` opens something else
COMPRESSED = {"gzip", "bz2", "lzma"}  # whose `open` is binary unless its mode has a "t"
PROCESSES = {"run", "Popen", "check_output", "check_call", "call"}


def without_encoding(source: str) -> list[str]:
    """The calls of a source that leave an encoding to the locale."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    return [f"line {call.lineno}: {ast.unparse(call)[:80]}" for call in calls if lacks_encoding(call)]


def lacks_encoding(call: ast.Call) -> bool:
    keywords = {keyword.arg: keyword.value for keyword in call.keywords}
    if "encoding" in keywords:
        return False
    owner = None
    if isinstance(call.func, ast.Attribute):
        name, owner = call.func.attr, call.func.value.id if isinstance(call.func.value, ast.Name) else ""
        known = METHODS.get(name) or FUNCTIONS.get(name)
    else:
        name = call.func.id if isinstance(call.func, ast.Name) else ""
        known = FUNCTIONS.get(name)
    if name in PROCESSES and owner == "subprocess":
        return any(is_true(keywords.get(name)) for name in ("text", "universal_newlines")) or "errors" in keywords
    if known is None or (owner in NO_FILES and name == "open"):
        return False
    is_compressed = owner in COMPRESSED
    place, place_of_mode = (3, 1) if is_compressed else known
    if len(call.args) > place:
        return False
    if place_of_mode is None:
        return True
    mode = keywords.get("mode") or (call.args[place_of_mode] if len(call.args) > place_of_mode else None)
    letters = mode.value if isinstance(mode, ast.Constant) and isinstance(mode.value, str) else ""
    if is_compressed:
        return "t" in letters
    return "b" not in letters and not (mode is None and name in BINARY_BY_DEFAULT)


def is_true(value: ast.expr | None) -> bool:
    return isinstance(value, ast.Constant) and value.value is True


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_encoding_is_named_at_every_text_file(path: Path):
    assert without_encoding(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "source",
    [
        "open(path)",
        "open(path, 'w')",
        "path.open('a')",
        "folder.joinpath('x').read_text()",
        "(folder / 'x').write_text(text)",
        "gzip.open(path, 'rt')",
        "subprocess.run(command, text=True)",
        "subprocess.Popen(command, universal_newlines=True)",
        "io.TextIOWrapper(stream)",
        "tempfile.NamedTemporaryFile('w')",
    ],
)
def test_call_without_encoding_is_found(source: str):
    assert without_encoding(source)


@pytest.mark.parametrize(
    "source",
    [
        "open(path, 'rb')",
        "path.open(mode='wb')",
        "path.read_text('utf-8')",
        "path.write_text(text, encoding='utf-8')",
        "gzip.open(path)",
        "Image.open(path)",
        "subprocess.run(command, capture_output=True)",
        "subprocess.run(command, encoding='utf-8')",
        "tempfile.NamedTemporaryFile()",
    ],
)
def test_call_that_needs_no_encoding_is_not_found(source: str):
    assert without_encoding(source) == []
