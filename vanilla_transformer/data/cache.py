# SPDX-License-Identifier: Apache-2.0
"""Prepared corpora on disk, beside those of `datasets`: a process of a node prepares, the others wait and map."""

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vanilla_transformer.console.outputs import write_atomically

# A file that has changed within this time may change again and keep its times, which clocks give in steps.
RACY_SECONDS = 2.0


def cache_folder() -> Path:
    """The folder of everything prepared; `HF_HOME` or `HF_DATASETS_CACHE` moves it."""
    from datasets import config

    folder = Path(config.HF_DATASETS_CACHE) / "vanilla_transformer"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def prepared_once(name: str) -> Iterator[Path]:
    """A path in the cache, for this process alone while the block runs; the next process finds what it has left there.

    The block writes only if the path does not exist, and writes elsewhere first (`unfinished`).
    """
    from filelock import FileLock

    path = cache_folder() / name
    with FileLock(f"{path}.lock"):
        yield path


@contextmanager
def unfinished(path: Path) -> Iterator[Path]:
    """A path to write to, which is renamed to `path` when the block ends, and removed if it raises."""
    partial = path.with_name(f".{path.name}")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def file_fingerprint(path: Path) -> str:
    """Size and SHA-256 of a file's bytes; read again only if its size, one of its times or its place has changed."""
    from datasets.fingerprint import Hasher

    path, now = path.resolve(), time.time()
    status = path.stat()
    # The time of the last change of the inode too: `touch` and `cp -p` set the other.
    state = [str(path), status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]
    with prepared_once(f"sha256-{Hasher.hash(state)}") as known:
        if known.exists():
            return known.read_text("utf-8")
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            fingerprint = f"{file.tell()} bytes, SHA-256 {digest}"
        after = path.stat()
        is_racy = now - max(status.st_mtime, status.st_ctime) < RACY_SECONDS
        if not is_racy and (after.st_mtime_ns, after.st_ctime_ns) == (status.st_mtime_ns, status.st_ctime_ns):
            write_atomically(known, fingerprint)
        return fingerprint
