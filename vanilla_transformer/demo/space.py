# SPDX-License-Identifier: Apache-2.0
"""The page in the layout of a Hub Space: app.py, requirements.txt, README.md, the code and the models."""

import os
import shutil
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import SpaceCardData

import vanilla_transformer
from vanilla_transformer.demo.page import INTRODUCTION, TITLE
from vanilla_transformer.demo.shown_model import ShownModel

REQUIRED = ("torch", "transformers", "matplotlib")  # the Space installs Gradio, by `sdk_version`

APP = '''\
# SPDX-License-Identifier: Apache-2.0
"""Starts the page of this Space; the code is in vanilla_transformer/demo/."""

from vanilla_transformer.demo.page import build_page, launch
from vanilla_transformer.demo.shown_model import open_models

MODELS = {models}

demo = build_page(open_models(MODELS))

if __name__ == "__main__":
    launch(demo)
'''

README = """\
---
{data}
---

# {title}

{introduction}
`pip install gradio=={data.sdk_version} -r requirements.txt`, then `python app.py`, serves this page on your machine.
"""


def write_space(folder: str | Path, models: Sequence[ShownModel]) -> Path:
    """Write a folder that runs as a Space of the Hub, and by `python app.py`.

    It holds this package's code and the local models, and requires the installed versions of the libraries. Models of
    the Hub are named, not copied.

    Raises:
        ValueError: `folder` exists.
        OSError: it cannot be written.
    """
    folder = Path(folder)
    if folder.exists():
        raise ValueError(f"--write-space {folder}: it exists already; name a new folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Where the Space finds each model: a folder of its own, or a Hub id.
    places = [f"models/{i}" if Path(model.path).is_dir() else model.path for i, model in enumerate(models, start=1)]
    data = SpaceCardData(
        title=TITLE,
        emoji="🔎",
        colorFrom="blue",
        colorTo="indigo",
        sdk="gradio",
        sdk_version=version("gradio"),
        python_version=".".join(map(str, sys.version_info[:2])),
        app_file="app.py",
        pinned=False,
        models=[model.path for place, model in zip(places, models, strict=True) if place == model.path] or None,
    )
    versions = {name: version(name).partition("+")[0] for name in REQUIRED}  # without "+cpu", which PyPI does not have
    files = {
        "app.py": APP.format(models=places),
        "requirements.txt": "".join(f"{name}=={number}\n" for name, number in versions.items()),
        "README.md": README.format(data=data, title=TITLE, introduction=INTRODUCTION),
    }
    with TemporaryDirectory(dir=folder.parent, prefix=".space-") as scratch:
        space = Path(scratch, "space")  # the scratch folder itself is readable by its owner alone
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(Path(vanilla_transformer.__file__).parent, space / "vanilla_transformer", ignore=ignore)
        for place, model in zip(places, models, strict=True):
            if place != model.path:
                shutil.copytree(model.path, space / place, ignore=ignore)
        for name, text in files.items():
            (space / name).write_text(text, encoding="utf-8")
        os.rename(space, folder)
    return folder
