# SPDX-License-Identifier: Apache-2.0
"""The page in the layout of a Hub Space: app.py, requirements.txt, README.md, and all that they need."""

import os
import shutil
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

import vanilla_transformer
from vanilla_transformer.demo.page import INTRODUCTION, TITLE
from vanilla_transformer.demo.shown_model import ShownModel

REQUIRED = ("torch", "transformers", "matplotlib")  # Gradio is installed by the Space, from `sdk_version`

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
title: "{title}"
emoji: 🔎
colorFrom: blue
colorTo: indigo
sdk: gradio
sdk_version: {gradio}
python_version: "{python}"
app_file: app.py
pinned: false
{models}---

# {title}

{introduction}
`pip install gradio=={gradio} -r requirements.txt`, then `python app.py`, serves this page on your own machine.
"""


def write_space(folder: str | Path, models: Sequence[ShownModel]) -> Path:
    """Write a folder that a Space of the Hub runs as it is, and so does `python app.py`.

    It has this package's code and the local models, and asks for the versions of libraries that are installed here.
    Models from the Hub stay there.

    Raises:
        ValueError: there is something at `folder` already.
        OSError: it cannot be written.
    """
    folder = Path(folder)
    if folder.exists():
        raise ValueError(f"--write-space {folder}: it exists already; name a new folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.parent, prefix=".space-") as scratch:
        space = Path(scratch, "space")  # a name of its own, for a folder that others may read
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(Path(vanilla_transformer.__file__).parent, space / "vanilla_transformer", ignore=ignored)
        places = _places(models)
        for place, model in zip(places, models, strict=True):
            if place != model.path:
                shutil.copytree(model.path, space / place, ignore=ignored)
        hub = [model.path for place, model in zip(places, models, strict=True) if place == model.path]
        numbers = {name: version(name).partition("+")[0] for name in REQUIRED}  # "2.13.0+cpu" is on no index of the Hub
        requirements = "".join(f"{name}=={number}\n" for name, number in numbers.items())
        values = {
            "title": TITLE,
            "gradio": version("gradio"),
            "python": ".".join(map(str, sys.version_info[:2])),
            "models": "models:\n" + "".join(f"- {name}\n" for name in hub) if hub else "",
            "introduction": INTRODUCTION,
        }
        files = {
            "app.py": APP.format(models=places),
            "requirements.txt": requirements,
            "README.md": README.format(**values),
        }
        for name, text in files.items():
            (space / name).write_text(text, encoding="utf-8")
        os.rename(space, folder)
    return folder


def _places(models: Sequence[ShownModel]) -> list[str]:
    """Where each model is found from within the Space: a folder of it, or the Hub."""
    places: list[str] = []
    for model in models:
        if not Path(model.path).is_dir():
            places.append(model.path)
            continue
        name = "models/" + "".join(c if c.isalnum() else "_" for c in model.kind.lower()).strip("_")
        taken = sum(place == name or place.startswith(f"{name}_") for place in places)
        places.append(f"{name}_{taken + 1}" if taken else name)
    return places
