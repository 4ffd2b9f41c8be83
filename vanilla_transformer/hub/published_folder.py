# SPDX-License-Identifier: Apache-2.0
"""What a model folder must hold to be published, and which of its files are."""

import ast
import json
import os
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import yaml
from huggingface_hub import ModelCard
from safetensors import SafetensorError, safe_open

from vanilla_transformer.inference.weight_files import INDEX, WEIGHTS, is_pickle_name

CONFIG, CARD, DECODING = "config.json", "README.md", "custom_generate/generate.py"
ANY_WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors(\.index\.json)?")
JSON = (CONFIG, "generation_config.json", "tokenizer.json", "tokenizer_config.json")
REQUIRED = (*JSON, DECODING, "LICENSE", CARD)
AUTO_CLASSES = ("AutoConfig", "AutoModel", "AutoModelForSeq2SeqLM")


def check_folder(folder: str | Path) -> list[str]:
    """Everything that keeps a model folder from being published, a line each; empty when it is complete.

    Looked for: missing or damaged files, code that config.json or another file needs, pickles (by name and by
    content, anywhere in the folder), links out of the folder, a card without valid metadata.

    Raises:
        FileNotFoundError: no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"model folder {folder} does not exist")
    problems = [f"{name} is missing" for name in REQUIRED if not (folder / name).is_file()]
    for check in (_damaged_json, _wrong_weights, _wrong_code, _wrong_card, _pickles, _links):
        problems.extend(check(folder))
    return list(dict.fromkeys(problems))


def list_files(folder: str | Path) -> list[tuple[str, int]]:
    """What of a model folder is published: paths within it with their sizes in bytes, sorted. Others stay here."""
    folder = Path(folder)
    names = {*REQUIRED, *_weight_files(folder), *_needed_code(folder)}
    return [(name, (folder / name).stat().st_size) for name in sorted(names) if (folder / name).is_file()]


def _read_json(path: Path) -> dict[str, Any]:
    """Empty when the file is missing or no object; `_damaged_json` has the complaint."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _damaged_json(folder: Path) -> Iterator[str]:
    for name in (*JSON, INDEX):
        if (folder / name).is_file() and not _read_json(folder / name):
            yield f"{name} is damaged: it is no JSON object with entries"


# Weights


def _weight_map(folder: Path) -> dict[str, str]:
    """Tensor → its file, as the index has it."""
    found = _read_json(folder / INDEX).get("weight_map")
    return {str(tensor): str(file) for tensor, file in found.items()} if isinstance(found, dict) else {}


def _weight_files(folder: Path) -> list[str]:
    if not (folder / INDEX).is_file():
        return [WEIGHTS]
    return [INDEX, *sorted(file for file in set(_weight_map(folder).values()) if ANY_WEIGHTS.fullmatch(file))]


def _wrong_weights(folder: Path) -> Iterator[str]:
    if not (folder / INDEX).is_file():
        if not (folder / WEIGHTS).is_file():
            yield f"{WEIGHTS} is missing (or {INDEX} and the files that it names)"
        else:
            yield from _wrong_tensors(folder / WEIGHTS, set())
        return
    if (folder / WEIGHTS).is_file():
        yield f"both {WEIGHTS} and {INDEX} are there, and only the first would be read: remove what is out of date"
    weight_map = _weight_map(folder)
    if not weight_map:
        yield f"{INDEX} names no weights"
    for file in sorted(set(weight_map.values())):
        if not ANY_WEIGHTS.fullmatch(file):
            yield f"{INDEX} names {file!r}, which is not a file model-N-of-N.safetensors beside it"
        elif not (folder / file).is_file():
            yield f"{file} is missing: {INDEX} names it"
        else:
            yield from _wrong_tensors(folder / file, {tensor for tensor, where in weight_map.items() if where == file})


def _wrong_tensors(path: Path, expected: set[str]) -> Iterator[str]:
    try:
        with safe_open(path, framework="numpy") as file:  # reads the header, and that the file is as long as it says
            missing = sorted(expected - set(file.keys()))
    except (SafetensorError, OSError) as error:
        yield f"{path.name} is damaged (truncated copy?): {_one_line(error)}"
        return
    if missing:
        yield f"{path.name} lacks {len(missing)} of the tensors that {INDEX} names, the first is {missing[0]}"


# Code


def _references(folder: Path) -> Iterator[tuple[str, str, str]]:
    """(where in config.json, module, class) of what it says about code, well-formed entries only."""
    config = _read_json(folder / CONFIG)
    for kind, entries in (("auto_map", config.get("auto_map")), ("custom_pipelines", config.get("custom_pipelines"))):
        for name, entry in entries.items() if isinstance(entries, dict) else ():
            reference = entry.get("impl") if isinstance(entry, dict) else entry
            if isinstance(reference, str) and (match := re.fullmatch(r"(\w+)\.(\w+)", reference)):
                yield f"{kind}.{name} in {CONFIG}", match[1], match[2]


def _needed_code(folder: Path) -> dict[str, str]:
    """Files of code → what needs them; whether they exist or not."""
    from transformers.dynamic_module_utils import get_relative_imports

    needed = {DECODING: "transformers' custom_generate"}
    for where, module, _ in _references(folder):
        needed.setdefault(f"{module}.py", where)
    waiting = list(needed)
    while waiting:
        file = waiting.pop()
        if not (folder / file).is_file():
            continue
        for name in sorted(get_relative_imports(folder / file)):  # as transformers will look for them
            if not name.isidentifier():  # a regular expression found it, in a docstring perhaps
                continue
            imported = str(PurePosixPath(file).with_name(f"{name}.py"))
            if imported not in needed:
                needed[imported] = file
                waiting.append(imported)
    return needed


def _wrong_code(folder: Path) -> Iterator[str]:
    from transformers.dynamic_module_utils import get_relative_imports

    config = _read_json(folder / CONFIG)
    if not config:
        return
    auto_map = config.get("auto_map")
    entries = auto_map if isinstance(auto_map, dict) else {}
    for name in AUTO_CLASSES:
        if name not in entries:
            yield f"auto_map in {CONFIG} lacks {name}: without it the folder does not open where our package is missing"
    understood = {where for where, _, _ in _references(folder)}
    for name, reference in entries.items():
        if f"auto_map.{name} in {CONFIG}" not in understood:
            yield f"auto_map.{name} in {CONFIG} is {reference!r}; it must be 'file.Class' of a file beside it"
    for file, needed_by in sorted(_needed_code(folder).items()):
        if (folder / file).is_file():
            for name in sorted(get_relative_imports(folder / file)):
                if not name.isidentifier():
                    yield f"{file} imports {f'.{name}'!r}, which is no file beside it"
        if not (folder / file).is_file() and file not in REQUIRED:
            yield f"{file} is missing: {needed_by} needs it"
    for where, module, class_name in _references(folder):
        if (folder / f"{module}.py").is_file():
            yield from _wrong_class(folder / f"{module}.py", class_name, where)


def _wrong_class(path: Path, class_name: str, where: str) -> Iterator[str]:
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError) as error:
        yield f"{path.name} is no Python that can be read: {_one_line(error)}"
        return
    if class_name not in {node.name for node in tree.body if isinstance(node, ast.ClassDef)}:
        yield f"{path.name} defines no class {class_name}, which {where} names"


# Card, pickles, links


def _wrong_card(folder: Path) -> Iterator[str]:
    """What the Hub itself would say of the values, only the Hub knows: `push_folder` asks it."""
    if not (folder / CARD).is_file():
        return
    try:
        card = ModelCard.load(folder / CARD)
    except (ValueError, yaml.YAMLError) as error:
        yield f"{CARD} is no valid model card: {_one_line(error)}"
        return
    if not card.data.to_dict():
        yield f"{CARD} has no metadata: it must begin with YAML between two lines of ---"


def _pickles(folder: Path) -> Iterator[str]:
    for path in _all_files(folder):
        if is_pickle_name(path.name) or _is_pickle(path):
            name = path.relative_to(folder).as_posix()
            yield f"{name} has to be unpickled to be opened, which can run any code: remove it, or save it otherwise"


def _is_pickle(path: Path) -> bool:
    """From the first bytes and, of an archive such as torch.save writes, the names within."""
    with path.open("rb") as file:
        start = file.read(9)
    if start.startswith(b"\x93NUMPY"):  # an array of objects is pickled
        return True
    # Protocols 2 to 5. The length that a safetensors file begins with may look like one, but its header follows.
    if start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05") and start[8:] != b"{":
        return True
    if not start.startswith(b"PK") or not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(is_pickle_name(name) for name in archive.namelist())


def _links(folder: Path) -> Iterator[str]:
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() and not _is_inside(path, folder):
            name = path.relative_to(folder).as_posix()
            yield f"{name} is a link to something outside of the folder: replace it by what it points to"


def _all_files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and _is_inside(path, folder):
            yield path


def _is_inside(path: Path, folder: Path) -> bool:
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
