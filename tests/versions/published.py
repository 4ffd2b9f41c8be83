# SPDX-License-Identifier: Apache-2.0
"""Published folders across versions of transformers: each version writes both models, and each opens all of them.

    python -m tests.versions.published [VERSION …]

`make test-versions` runs it. A folder is opened with the package and by the code that it carries. The answers, tokens
and numbers, are compared with those of the newest version on its own folder; the table shows the largest difference
of a number. Other versions than the supported are shown to be refused. The versions are installed into build/versions,
which takes a network and 60 MB each; torch is the environment's.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.versions.installing import installed, run_in

SUPPORTED = ("5.17.0", "5.18.0", "5.19.0", "5.20.2", "5.21.1", "5.22.2", "5.23.0", "5.24.0")
REFUSED = ("4.57.3", "5.16.1")
TOLERANCE = 1e-5
REPOSITORY = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("in_one_version.py")
WAYS = ("package", "remote")
MODELS = ("vanilla_transformer", "rnn_seq2seq")


def answers_of(version: str, way: str, folders: list[Path], work: Path) -> dict[str, Any]:
    """Run a version on the folders: its answer for each, or `refused`."""
    output = work / "answers.json"
    arguments = [way, str(output), *map(str, folders)]
    run_in(installed(version), SCRIPT, arguments, work, package=REPOSITORY if way == "package" else None)
    answers = json.loads(output.read_text(encoding="utf-8"))
    assert answers["version"] == version
    return answers


def write_folders(version: str, root: Path, work: Path) -> None:
    run_in(installed(version), SCRIPT, ["write", str(root)], work, package=REPOSITORY)


def difference(found: dict[str, Any], expected: dict[str, Any]) -> float:
    """The largest difference of a number; infinite if a token differs."""
    if found["tokens"] != expected["tokens"]:
        return float("inf")
    pairs = zip(found["numbers"], expected["numbers"], strict=True)
    return max(abs(number - other) for number, other in pairs)


def compare(versions: tuple[str, ...]) -> dict[tuple[str, str, str, str], float]:
    """(model, way, written by, opened by) → `difference`; the last version's answers to its own folders are right."""
    found: dict[tuple[str, str, str, str], float] = {}
    with tempfile.TemporaryDirectory() as temporary:
        root, work = Path(temporary, "folders"), Path(temporary, "work")
        work.mkdir()
        for version in versions:
            write_folders(version, root / version, work)
        folders = {(model, version): root / version / model for model in MODELS for version in versions}
        expected: dict[str, Any] = {}
        for reader in reversed(versions):
            for way in WAYS:
                answers = answers_of(reader, way, list(folders.values()), work)
                expected = expected or {model: answers[str(folders[model, reader])] for model in MODELS}
                for (model, writer), folder in folders.items():
                    found[model, way, writer, reader] = difference(answers[str(folder)], expected[model])
                print(f"{reader} has opened all folders: {way}", file=sys.stderr, flush=True)
    return found


def refusal(version: str, way: str, folder: Path, work: Path) -> str:
    """The line by which a version that is not supported is refused."""
    return answers_of(version, way, [folder], work)["refused"]


def main(*arguments: str) -> None:
    versions = arguments or SUPPORTED
    found = compare(versions)
    for model in MODELS:
        for way in WAYS:
            print(f"\n{model}, opened {'with the package' if way == 'package' else 'by the code of the folder'}")
            print(" | ".join(["written by", *versions]))
            for writer in versions:
                cells = (f"{found[model, way, writer, reader]:.0e}" for reader in versions)
                print(" | ".join([writer.ljust(10), *cells]))
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        write_folders(versions[-1], work / "folders", work)
        for version in REFUSED:
            for way in WAYS:
                print(f"\n{version}, {way}: {refusal(version, way, work / 'folders' / MODELS[0], work)}")
    same = sum(value <= TOLERANCE for value in found.values())
    print(f"\n{same} of {len(found)} openings gave the same tokens, and numbers within {TOLERANCE}")
    sys.exit(same < len(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
