# SPDX-License-Identifier: Apache-2.0
"""Other versions of transformers, and other toolkits, each in a folder beside the environment's torch and the rest."""

import importlib.metadata
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path("build", "versions")
NEEDS = {  # transformers → what it needs in another version than the environment's
    "4.40.2": ("huggingface_hub==0.36.0", "tokenizers==0.19.1"),
    "4.57.3": ("huggingface_hub==0.36.0", "tokenizers==0.22.1"),
    "5.0.0": ("huggingface_hub==1.3.4", "tokenizers==0.22.1"),
    "5.16.1": ("huggingface_hub==1.33.0",),
    "5.17.0": ("huggingface_hub==1.33.0",),
}


def install(requirements: Sequence[str], folder: Path) -> None:
    """Install distributions in this order, without their requirements, into a folder, unless it exists.

    One that has to be built uses the environment and those before it: in isolation it would download torch once more.

    Raises:
        RuntimeError: in one line, if pip cannot, for want of a network for instance.
    """
    if folder.is_dir():
        return
    unfinished = folder.resolve().with_name(f"{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--target", unfinished]
    environment = os.environ | {"PYTHONPATH": str(unfinished)}
    for requirement in requirements:
        done = subprocess.run([*pip, requirement], stderr=subprocess.PIPE, encoding="utf-8", env=environment)
        if done.returncode != 0:
            errors = [line for line in done.stderr.splitlines() if line.lower().startswith("error")]
            raise RuntimeError(f"pip cannot install {requirement}: {errors[-1] if errors else done.stderr[-200:]!r}")
    unfinished.rename(folder)


def installed(version: str, root: Path = ROOT) -> Path | None:
    """The folder of this version, installed if it is not there, which takes a network; `None`: the environment's."""
    if version == importlib.metadata.version("transformers"):
        return None
    folder = root.resolve() / version
    install([f"transformers=={version}", *NEEDS.get(version, ())], folder)
    return folder


def run_in(
    folder: Path | None, script: Path, arguments: Sequence[str], cwd: Path, input: str = "", package: Path | None = None
) -> None:
    """Run a script in another process with the version in `folder` (`installed`).

    Args:
        cwd: where it runs; an empty folder, so that nothing is imported from there.
        package: the folder of our package, if the script may import it.

    Raises:
        RuntimeError: with the end of what it wrote, if it fails.
    """
    paths = [str(path) for path in (folder, package) if path is not None]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1", "HF_HOME": str(cwd / "hf")}
    command = [sys.executable, "-W", "ignore", str(script), *arguments]
    done = subprocess.run(command, input=input, env=environment, cwd=cwd, capture_output=True, encoding="utf-8")
    if done.returncode != 0:
        raise RuntimeError(f"{folder}: {done.stderr[-3000:]}")
