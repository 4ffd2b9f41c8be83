# SPDX-License-Identifier: Apache-2.0
"""The comparison as a whole: measure the missing parts, and write the folder."""

import json
import os
import platform
from collections.abc import Callable
from dataclasses import asdict
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
import yaml

from vanilla_transformer.comparison.configuration import CompareConfig
from vanilla_transformer.comparison.long_range import measure_long_range
from vanilla_transformer.comparison.quality import measure_quality, quality_settings
from vanilla_transformer.comparison.report import write_report
from vanilla_transformer.comparison.result_file import read_result, write_result
from vanilla_transformer.comparison.speed import measure_speed
from vanilla_transformer.console.outputs import write_atomically
from vanilla_transformer.inference.model_folder import default_device

PARTS = "parts"  # the folder of finished parts, a file for each


def compare(config: CompareConfig, on_progress: Callable[[str, int, int, str], None]) -> dict[str, Any]:
    """Measure every part that has no result in the folder; write results.json, report.md and its plots.

    Args:
        on_progress: called with the part, its finished steps, all its steps, and a description of the last.

    Returns:
        The results, with the schema of `vanilla_transformer.comparison.report`.

    Raises:
        ValueError: the folder holds something else; a file in it is damaged or was made with other settings; runs that
            differ in data or vocabulary.
    """
    folder, device = Path(config.output_dir), default_device()
    parts: dict[str, tuple[Any, Callable[[], Any]]] = {}  # name → the settings that its result depends on, measure
    if config.speed is not None:
        measure = partial(measure_speed, config.speed, device, partial(on_progress, "speed"))
        parts["speed"] = asdict(config.speed), measure
    if config.long_range is not None:
        place = folder / "long_range"
        measure = partial(measure_long_range, config.long_range, place, device, partial(on_progress, "long range"))
        parts["long_range"] = asdict(config.long_range), measure
    if config.quality:
        place = folder / "quality"
        measure = partial(measure_quality, config.quality, place, device, partial(on_progress, "quality"))
        parts["quality"] = quality_settings(config.quality, place), measure
    if folder.exists() and any(folder.iterdir()) and not (folder / PARTS).is_dir():
        raise ValueError(f"output_dir={folder} holds files that are of no comparison; choose another folder")
    files = {name: folder / PARTS / f"{name}.json" for name in parts}
    # All files are read before any part is measured, so that their errors come first.
    found = {name: read_result(files[name], settings) for name, (settings, _) in parts.items()}
    _write_config(folder, config)
    results: dict[str, Any] = {"machines": {}, "speed": None, "long_range": None, "quality": None}
    for name, (settings, measure) in parts.items():
        result = found[name]
        if result is None:
            result = {"machine": _machine(device), "measured": measure()}
            write_result(files[name], settings, result)
        results["machines"][name], results[name] = result["machine"], result["measured"]
    write_atomically(folder / "results.json", json.dumps(results, indent=1) + "\n")
    write_report(results, folder)
    return results


def _write_config(folder: Path, config: CompareConfig) -> None:
    """Make the folder, and write the resolved configuration, whose runs are relative to it."""
    (folder / PARTS).mkdir(parents=True, exist_ok=True)
    values = asdict(config)
    for task in (values["quality"] or {}).values():
        task["runs"] = {model: os.path.relpath(file, folder) for model, file in task["runs"].items()}
    write_atomically(folder / "config.yaml", yaml.safe_dump(values, sort_keys=False, allow_unicode=True))


def _machine(device: torch.device) -> dict[str, Any]:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} {device.type}"
    return {
        "device": f"{name}, {os.cpu_count()} cores",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "date": date.today().isoformat(),
    }
