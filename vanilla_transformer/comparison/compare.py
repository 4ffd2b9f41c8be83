# SPDX-License-Identifier: Apache-2.0
"""The comparison as a whole: measure what is missing, and write the folder."""

import json
import os
import platform
from collections.abc import Callable
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

import torch
import transformers
import yaml

from vanilla_transformer.comparison.configuration import CompareConfig
from vanilla_transformer.comparison.long_range import measure_long_range
from vanilla_transformer.comparison.quality import load_runs, measure_quality, settings_of
from vanilla_transformer.comparison.report import write_report
from vanilla_transformer.comparison.speed import measure_speed
from vanilla_transformer.evaluation.model_folder import default_device

CONFIG, RESULTS = "config.yaml", "results.json"
PARTS = "parts"  # what is finished, a file for each part


def compare(config: CompareConfig, on_progress: Callable[[str, int, int, str], None]) -> dict[str, Any]:
    """Measure every part that has no result in the folder yet; write results.json, report.md and its plots.

    Args:
        on_progress: called with the part, how much of it is done, of how much, and what was done last.

    Returns:
        The results, as `vanilla_transformer.comparison.report` tells.

    Raises:
        ValueError: the folder holds something else; a file in it is damaged or was made with other settings; runs that
            differ in data or vocabulary.
    """
    folder, device = Path(config.output_dir), default_device()
    for name, task in (config.quality or {}).items():
        load_runs(name, task, folder / "quality" / name)  # their errors come now, not after minutes of the other parts
    _claim(folder, config)
    results: dict[str, Any] = {"machine": _machine(device)}

    def progress(part: str) -> Callable[[int, int, str], None]:
        return lambda done, total, what: on_progress(part, done, total, what)

    speed, long_range, quality = config.speed, config.long_range, config.quality
    results["speed"] = speed and _part(
        folder, "speed", asdict(speed), lambda: measure_speed(speed, device, progress("speed"))
    )
    results["long_range"] = long_range and _part(
        folder,
        "long_range",
        asdict(long_range),
        lambda: measure_long_range(long_range, folder / "long_range", device, progress("long range")),
    )
    results["quality"] = quality and _part(
        folder,
        "quality",
        settings_of(quality),
        lambda: measure_quality(quality, folder / "quality", device, progress("quality")),
    )
    _write_json(folder / RESULTS, results)
    write_report(results, folder)
    return results


def _claim(folder: Path, config: CompareConfig) -> None:
    """Make the folder, and write the resolved configuration into it."""
    if folder.exists() and any(folder.iterdir()) and not (folder / CONFIG).is_file():
        raise ValueError(f"output_dir={folder} holds files, and no {CONFIG} of a comparison; choose another folder")
    (folder / PARTS).mkdir(parents=True, exist_ok=True)
    values = config.to_dict()
    for task in (values["quality"] or {}).values():  # as the loader reads them: relative to the file that names them
        task["runs"] = {model: os.path.relpath(file, folder) for model, file in task["runs"].items()}
    unfinished = folder / f".{CONFIG}"
    unfinished.write_text(yaml.safe_dump(values, sort_keys=False, allow_unicode=True), encoding="utf-8")
    unfinished.replace(folder / CONFIG)


def _part(folder: Path, name: str, settings: Any, measure: Callable[[], Any]) -> Any:
    """A part's result from its file, or measured and written there.

    Raises:
        ValueError: the file is damaged, or was made with other settings.
    """
    path = folder / PARTS / f"{name}.json"
    settings = json.loads(json.dumps(settings))  # as it comes back from the file
    if path.exists():
        try:
            content = json.loads(path.read_text("utf-8"))
            made_with, result = content["settings"], content["result"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is damaged: remove it, and the same command measures it again") from error
        if made_with != settings:
            raise ValueError(f"{path} was made with other settings: remove it, or choose another output_dir")
        return result
    result = measure()
    _write_json(path, {"settings": settings, "result": result})
    return result


def _write_json(path: Path, content: Any) -> None:
    """Whole or not at all."""
    unfinished = path.with_name(f".{path.name}")
    unfinished.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    unfinished.replace(path)


def _machine(device: torch.device) -> dict[str, Any]:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} {device.type}"
    return {
        "device": f"{name}, {os.cpu_count()} cores",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "date": date.today().isoformat(),
    }
