# SPDX-License-Identifier: Apache-2.0
"""Results on disk, each with the settings that it was made with: whole or not at all, and never another's."""

import json
from pathlib import Path
from typing import Any


def write_result(path: Path, settings: Any, result: Any) -> None:
    """Write beside the place and rename."""
    unfinished = path.with_name(f".{path.name}")
    unfinished.write_text(json.dumps({"settings": settings, "result": result}, indent=1) + "\n", encoding="utf-8")
    unfinished.replace(path)


def read_result(path: Path, settings: Any) -> Any:
    """The result; `None`: there is none yet.

    Raises:
        ValueError: the file is damaged, or was made with other settings.
    """
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text("utf-8"))
        made_with, result = content["settings"], content["result"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged: remove it, and the same command measures it again") from error
    if made_with != json.loads(json.dumps(settings)):  # as they come back from a file
        raise ValueError(f"{path} was made with other settings: remove it, or choose another output_dir")
    return result
