# SPDX-License-Identifier: Apache-2.0
"""Results on disk: written atomically, and each with the settings that it was measured with."""

import json
from pathlib import Path
from typing import Any

from vanilla_transformer.console.outputs import write_atomically


def write_result(path: Path, settings: Any, result: Any) -> None:
    """Write a result with its settings as JSON."""
    write_atomically(path, json.dumps({"settings": settings, "result": result}, indent=1) + "\n")


def read_result(path: Path, settings: Any) -> Any:
    """The result, or `None` if there is no file.

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
    if made_with != json.loads(json.dumps(settings)):  # as JSON returns them
        raise ValueError(f"{path} was made with other settings: remove it, or choose another output_dir")
    return result
