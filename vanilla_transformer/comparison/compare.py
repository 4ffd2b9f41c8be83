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
from vanilla_transformer.comparison.quality import measure_quality, settings_of
from vanilla_transformer.comparison.report import write_report
from vanilla_transformer.comparison.result_file import read_result, write_result
from vanilla_transformer.comparison.speed import measure_speed
from vanilla_transformer.inference.model_folder import default_device

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

    def progress(part: str) -> Callable[[int, int, str], None]:
        return lambda done, total, what: on_progress(part, done, total, what)

    # part → what its result depends on, and how it is measured
    parts: dict[str, tuple[Any, Callable[[], Any]]] = {}
    speed, long_range, quality = config.speed, config.long_range, config.quality
    if speed is not None:
        parts["speed"] = asdict(speed), lambda: measure_speed(speed, device, progress("speed"))
    if long_range is not None:
        place = folder / "long_range"
        parts["long_range"] = (
            asdict(long_range),
            lambda: measure_long_range(long_range, place, device, progress("long range")),
        )
    if quality:
        runs_place = folder / "quality"
        parts["quality"] = (
            settings_of(quality, runs_place),
            lambda: measure_quality(quality, runs_place, device, progress("quality")),
        )
    _check_folder(folder)
    for name, (settings, _) in parts.items():  # their errors come now, not after minutes of the other parts
        read_result(_file_of(folder, name), settings)
    _write_config(folder, config)
    results: dict[str, Any] = {"machines": {}, "speed": None, "long_range": None, "quality": None}
    for name, (settings, measure) in parts.items():
        found = read_result(_file_of(folder, name), settings)
        if found is None:
            found = {"machine": _machine(device), "measured": measure()}
            write_result(_file_of(folder, name), settings, found)
        results["machines"][name], results[name] = found["machine"], found["measured"]
    unfinished = folder / f".{RESULTS}"
    unfinished.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    unfinished.replace(folder / RESULTS)
    write_report(results, folder)
    return results


def _file_of(folder: Path, part: str) -> Path:
    return folder / PARTS / f"{part}.json"


def _check_folder(folder: Path) -> None:
    """A training run's folder has a config.yaml too, and would lose it."""
    if folder.exists() and any(folder.iterdir()) and not (folder / PARTS).is_dir():
        raise ValueError(f"output_dir={folder} holds files that are of no comparison; choose another folder")


def _write_config(folder: Path, config: CompareConfig) -> None:
    """Make the folder, and write the resolved configuration into it."""
    (folder / PARTS).mkdir(parents=True, exist_ok=True)
    values = config.to_dict()
    for task in (values["quality"] or {}).values():  # as the loader reads them: relative to the file that names them
        task["runs"] = {model: os.path.relpath(file, folder) for model, file in task["runs"].items()}
    unfinished = folder / f".{CONFIG}"
    unfinished.write_text(yaml.safe_dump(values, sort_keys=False, allow_unicode=True), encoding="utf-8")
    unfinished.replace(folder / CONFIG)


def _machine(device: torch.device) -> dict[str, Any]:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} {device.type}"
    return {
        "device": f"{name}, {os.cpu_count()} cores",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "date": date.today().isoformat(),
    }
