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

from vanilla_transformer.data.tokenizer_class import HAS_TARGET, TARGET_TOKENIZER
from vanilla_transformer.inference.weight_files import INDEX, WEIGHTS, is_pickle_name

CONFIG, CARD, DECODING = "config.json", "README.md", "custom_generate/generate.py"
ANY_WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors(\.index\.json)?")
JSON = (CONFIG, "generation_config.json", "tokenizer.json", "tokenizer_config.json")
TARGET_JSON = tuple(f"{TARGET_TOKENIZER}/{name}" for name in JSON if name.startswith("tokenizer"))
REQUIRED = (*JSON, DECODING, "LICENSE", CARD)
AUTO_CLASSES = ("AutoConfig", "AutoModel", "AutoModelForSeq2SeqLM")


def check_folder(folder: str | Path) -> list[str]:
    """Every reason why a model folder cannot be published, a line each; empty when it is complete.

    Reasons: missing or damaged files, also of code; pickles, by name and by content; links out of the folder; a card
    without valid metadata.

    Raises:
        FileNotFoundError: no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"model folder {folder} does not exist")
    target = TARGET_JSON if _read_json(folder / "tokenizer_config.json").get(HAS_TARGET) else ()
    problems = [f"{name} is missing" for name in (*REQUIRED, *target) if not (folder / name).is_file()]
    for check in (_json_problems, _weight_problems, _code_problems, _card_problems, _unsafe_files):
        problems.extend(" ".join(problem.split()) for problem in check(folder))
    return list(dict.fromkeys(problems))


def list_files(folder: str | Path) -> list[tuple[str, int]]:
    """The files of a model folder that are published: their paths within it, sorted, and their sizes in bytes."""
    folder = Path(folder)
    names = {*REQUIRED, *TARGET_JSON, INDEX, *filter(ANY_WEIGHTS.fullmatch, _weights(folder)), *_needed_code(folder)}
    return [(name, (folder / name).stat().st_size) for name in sorted(names) if (folder / name).is_file()]


def _read_json(path: Path) -> dict[str, Any]:
    """Empty if the file is missing or no object, which `_json_problems` reports."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _json_problems(folder: Path) -> Iterator[str]:
    for name in (*JSON, INDEX):
        if (folder / name).is_file() and not _read_json(folder / name):
            yield f"{name} is damaged: it is no JSON object with entries"


# Weights


def _weights(folder: Path) -> dict[str, set[str]]:
    """File of weights → the tensors that the index says it has; without an index the one file, and no tensors."""
    if not (folder / INDEX).is_file():
        return {WEIGHTS: set()}
    weight_map, files = _read_json(folder / INDEX).get("weight_map"), {}
    for tensor, file in weight_map.items() if isinstance(weight_map, dict) else ():
        files.setdefault(str(file), set()).add(tensor)
    return files


def _weight_problems(folder: Path) -> Iterator[str]:
    files = _weights(folder)
    if not files:
        yield f"{INDEX} names no weights"
    if WEIGHTS not in files and (folder / WEIGHTS).is_file():
        yield f"both {WEIGHTS} and {INDEX} are there, and only the first would be read: remove what is out of date"
    for name, expected in sorted(files.items()):
        if not ANY_WEIGHTS.fullmatch(name):
            yield f"{INDEX} names {name!r}, which is not a file model-N-of-N.safetensors beside it"
            continue
        try:
            with safe_open(folder / name, framework="numpy") as file:  # checks the header, and the length of the file
                missing = sorted(expected - set(file.keys()))
        except FileNotFoundError:
            why = f": {INDEX} names it" if expected else f" (or {INDEX} and the files that it names)"
            yield f"{name} is missing{why}"
        except (SafetensorError, OSError) as error:
            yield f"{name} is damaged (truncated copy?): {error}"
        else:
            if missing:
                yield f"{name} lacks {len(missing)} of the tensors that {INDEX} names, the first is {missing[0]}"


# Code


def _references(folder: Path) -> dict[str, tuple[str, str]]:
    """Place in config.json → module and class that it names; well-formed entries only."""
    config, found = _read_json(folder / CONFIG), {}
    for kind in ("auto_map", "custom_pipelines"):
        entries = config.get(kind)
        for name, entry in entries.items() if isinstance(entries, dict) else ():
            reference = entry.get("impl") if isinstance(entry, dict) else entry
            if isinstance(reference, str) and (match := re.fullmatch(r"(\w+)\.(\w+)", reference)):
                found[f"{kind}.{name} in {CONFIG}"] = match[1], match[2]
    return found


def _imports(path: Path) -> list[str]:
    """Relative imports as transformers finds them: by a regular expression, in docstrings too."""
    from transformers.dynamic_module_utils import get_relative_imports

    return sorted(get_relative_imports(path)) if path.is_file() else []


def _needed_code(folder: Path) -> dict[str, str]:
    """File of code → what needs it; the file may be missing."""
    needed = {DECODING: "transformers' custom_generate"}
    for where, (module, _) in _references(folder).items():
        needed.setdefault(f"{module}.py", where)
    files = list(needed)
    for file in files:  # which grows meanwhile
        for name in filter(str.isidentifier, _imports(folder / file)):
            imported = str(PurePosixPath(file).with_name(f"{name}.py"))
            if imported not in needed:
                needed[imported] = file
                files.append(imported)
    return needed


def _code_problems(folder: Path) -> Iterator[str]:
    config, references = _read_json(folder / CONFIG), _references(folder)
    if not config:
        return
    auto_map = config.get("auto_map")
    entries = auto_map if isinstance(auto_map, dict) else {}
    for name in AUTO_CLASSES:
        if name not in entries:
            yield f"auto_map in {CONFIG} lacks {name}: without it the folder does not open where our package is missing"
    for name, reference in entries.items():
        if f"auto_map.{name} in {CONFIG}" not in references:
            yield f"auto_map.{name} in {CONFIG} is {reference!r}; it must be 'file.Class' of a file beside it"
    for file, needed_by in sorted(_needed_code(folder).items()):
        for name in _imports(folder / file):
            if not name.isidentifier():
                yield f"{file} imports {f'.{name}'!r}, which is no file beside it"
        if not (folder / file).is_file() and file not in REQUIRED:
            yield f"{file} is missing: {needed_by} needs it"
    for where, (module, class_name) in references.items():
        path = folder / f"{module}.py"
        try:
            tree = ast.parse(path.read_bytes())
        except FileNotFoundError:  # is reported above
            continue
        except (SyntaxError, ValueError) as error:
            yield f"{path.name} is no Python that can be read: {error}"
            continue
        if class_name not in {node.name for node in tree.body if isinstance(node, ast.ClassDef)}:
            yield f"{path.name} defines no class {class_name}, which {where} names"


# Card, pickles, links


def _card_problems(folder: Path) -> Iterator[str]:
    """Problems that are seen without the Hub, which `push_folder` asks for the others."""
    if not (folder / CARD).is_file():
        return
    try:
        card = ModelCard.load(folder / CARD)
    except (ValueError, yaml.YAMLError) as error:
        yield f"{CARD} is no valid model card: {error}"
        return
    if not card.data.to_dict():
        yield f"{CARD} has no metadata: it must begin with YAML between two lines of ---"


def _unsafe_files(folder: Path) -> Iterator[str]:
    """Pickles, and links out of the folder."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
            yield f"{name} is a link to something outside of the folder: replace it by what it points to"
        elif path.is_file() and (is_pickle_name(name) or _is_pickle(path)):
            yield f"{name} has to be unpickled to be opened, which can run any code: remove it, or save it otherwise"


def _is_pickle(path: Path) -> bool:
    """By the first bytes, and by the names within an archive, which torch.save writes."""
    with path.open("rb") as file:
        start = file.read(9)
    if start.startswith(b"\x93NUMPY"):  # an array of objects is pickled
        return True
    # Protocols 2 to 5. The length at the beginning of a safetensors file may look like one, but a header follows it.
    if start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05") and start[8:] != b"{":
        return True
    if not start.startswith(b"PK") or not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(map(is_pickle_name, archive.namelist()))
