# SPDX-License-Identifier: Apache-2.0
"""Folders that are there whole or not at all, whenever a process is killed: written elsewhere, then renamed."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from accelerate import Accelerator
from safetensors import SafetensorError

from vanilla_transformer.distributed.processes import wait_for_everyone
from vanilla_transformer.training.manifest import sync, sync_folder, write_manifest

UNFINISHED, REPLACED = ".unfinished-", ".replaced-"  # prefixes of a folder's name


@contextmanager
def atomic_folder(folder: Path, accelerator: Accelerator | None = None, manifest: bool = False) -> Iterator[Path]:
    """An empty folder to write into; it takes the place of `folder` when the block ends without an error.

    Args:
        accelerator: all of its processes write into the folder; `None`: this one alone.
        manifest: list the files in the folder, so that `find_damage` can check them.

    Raises:
        OSError: something cannot be written, for want of room perhaps; nothing is left of it.
    """
    unfinished = folder.with_name(f"{UNFINISHED}{folder.name}")
    is_main = accelerator is None or accelerator.is_main_process
    try:
        if is_main:
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(parents=True)
        if accelerator is not None:
            wait_for_everyone()
        yield unfinished
        if accelerator is not None:
            wait_for_everyone()
        if is_main and manifest:
            write_manifest(unfinished)
        elif is_main:
            sync_folder(unfinished)
    except Exception as error:
        # Python and safetensors have their own errors for a disk; tokenizers raises a bare Exception.
        if not isinstance(error, OSError | SafetensorError) and type(error) is not Exception:
            raise
        shutil.rmtree(unfinished, ignore_errors=True)  # a full disk should not be fuller
        reason = " ".join(str(error).split())
        raise OSError(f"{folder} cannot be written ({reason}); what was there before is as it was") from error
    if is_main:
        replaced = folder.with_name(f"{REPLACED}{folder.name}")
        if folder.exists():
            shutil.rmtree(replaced, ignore_errors=True)
            folder.rename(replaced)
        unfinished.rename(folder)
        sync(folder.parent)
        shutil.rmtree(replaced, ignore_errors=True)


def clear_interrupted(parent: Path) -> None:
    """Remove what a killed process left in `parent`, and bring back what it was about to replace."""
    for path in sorted(parent.glob(f"{REPLACED}*")):
        folder = path.with_name(path.name.removeprefix(REPLACED))
        if folder.exists():
            shutil.rmtree(path)
        else:  # killed between the two renames
            path.rename(folder)
    for path in parent.glob(f"{UNFINISHED}*"):
        shutil.rmtree(path)
