# SPDX-License-Identifier: Apache-2.0
"""A large file of lines, decoded shard by shard, each by one process; a shard is there whole or not at all.

A shard's bytes depend on the options in the manifest alone, so that a folder that goes on after an interruption has the
bytes of an uninterrupted one.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from vanilla_transformer.console.outputs import write_atomically
from vanilla_transformer.data.cache import file_fingerprint
from vanilla_transformer.data.corpus import read_lines
from vanilla_transformer.distributed.processes import process_state, wait_for_everyone
from vanilla_transformer.inference.shortlist import ShortlistDecoder
from vanilla_transformer.inference.translator import Translator

MANIFEST, LOCK = "manifest.json", ".lock"


def decode_shards(
    input: Path,
    shard_lines: int,
    path_of: Callable[[int], Path],
    write: Callable[[Path, list[str], int], None],
    on_progress: Callable[[int], object],
) -> tuple[list[Path], int]:
    """Write the shards that are missing, shared by all processes, which all call this.

    Args:
        path_of: number of a shard, counted from 0 → its file, all in one folder.
        write: makes the file, whole or not at all, of its lines and the number of the first.
        on_progress: called after each shard of this process with the number of its lines.

    Returns:
        The files of all shards, and the number of lines.

    Raises:
        ValueError: the input is empty; and as `read_lines` and `write`.
    """
    state, paths, missing, done = process_state(), [], 0, 0
    is_written = {path.name for path in path_of(0).parent.glob("*")}
    wait_for_everyone()  # before any process writes: all share out the same shards
    all_lines = read_lines(input)
    while lines := list(islice(all_lines, shard_lines)):
        paths.append(path_of(len(paths)))
        if paths[-1].name not in is_written:
            if missing % state.num_processes == state.process_index:
                write(paths[-1], lines, done + 1)
                on_progress(len(lines))
            missing += 1
        done += len(lines)
    if not paths:
        raise ValueError(f"{input} is empty: there is nothing to decode")
    wait_for_everyone(uneven=True)
    return paths, done


def claim(folder: Path, description: dict[str, Any]) -> None:
    """Begin the folder, or check that it was begun in the same way."""
    unnamed = (LOCK, f".{MANIFEST}")  # a process that is killed may leave the latter
    if (folder / MANIFEST).exists():
        begun = read_manifest(folder)
        for name in dict.fromkeys([*description, *begun]):
            before, now = begun.get(name), description.get(name)
            if name != "counts" and before != now:
                raise ValueError(
                    f"{folder} was begun with {name}={before}, and this is {name}={now}; go on with the former, or "
                    "name another --output"
                )
    elif foreign := sorted(path.name for path in folder.iterdir() if path.name not in unnamed):
        raise ValueError(f"{folder} has {foreign[0]} in it, but no {MANIFEST}; name an empty or new folder as --output")
    else:
        write_atomically(folder / MANIFEST, json.dumps(description, indent=2) + "\n")


def read_manifest(folder: Path) -> dict[str, Any]:
    """The options that the folder was begun with; ValueError if the file is damaged."""
    try:
        return dict(json.loads((folder / MANIFEST).read_text("utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{folder / MANIFEST} is damaged; remove the folder, or name another --output") from error


def describe(translator: Translator, input: Path, options: dict[str, Any]) -> dict[str, Any]:
    """All that decides the bytes of a shard, with flat names for the user's message."""
    model, decoder, shortlist = translator.model, translator.decoder, {}
    if isinstance(decoder, ShortlistDecoder):
        decoder, shortlist = decoder.decoder, {"shortlist": decoder.shortlist.fingerprint()}
    precision = getattr(decoder, "precision", "float32")  # the native engine's own
    dtype = str(model.dtype) if precision == "float32" else precision
    computed = {"engine": translator.engine, "dtype": dtype, "device": model.device.type, **shortlist}
    return {"model": _model_fingerprint(translator), "input": file_fingerprint(input), **computed, **options}


def _model_fingerprint(translator: Translator) -> str:
    """SHA-256 of weights, configurations and tokenizer, wherever they came from."""
    digest, model = hashlib.sha256(), translator.model
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).cpu().numpy())
    for config in (model.config, model.generation_config):
        values = config.to_dict()
        for changing in ("transformers_version", "_name_or_path"):
            values.pop(changing, None)
        digest.update(json.dumps(values, sort_keys=True, default=str).encode())
    with TemporaryDirectory() as folder:
        translator.tokenizer.save_pretrained(folder)
        for path in sorted(path for path in Path(folder).rglob("*") if path.is_file()):
            digest.update(path.read_bytes())
    return digest.hexdigest()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """The folder, for the processes of one command; the system releases the lock of one that is killed."""
    if not process_state().is_main_process:
        yield
        return
    from filelock import FileLock, Timeout

    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / LOCK, timeout=0):
            yield
    except Timeout as error:
        raise ValueError(
            f"{folder} is in use by another process; wait for its end, or name another --output"
        ) from error
