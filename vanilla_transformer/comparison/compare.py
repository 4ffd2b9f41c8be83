# SPDX-License-Identifier: Apache-2.0
"""The comparison as a whole: read its YAML file, measure the missing parts, and write the folder."""

import json
import os
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
import yaml
from huggingface_hub.dataclasses import strict

from vanilla_transformer.comparison.fairness import check_has_transformer
from vanilla_transformer.comparison.long_range import LongRangeConfig, measure_long_range
from vanilla_transformer.comparison.quality import QualityConfig, measure_quality, quality_settings
from vanilla_transformer.comparison.report import write_report
from vanilla_transformer.comparison.result_file import read_result, write_result
from vanilla_transformer.comparison.speed import SpeedConfig, measure_speed
from vanilla_transformer.console.outputs import write_atomically
from vanilla_transformer.inference.model_folder import default_device
from vanilla_transformer.training.device import allow_tf32
from vanilla_transformer.training.yaml_sections import build_section, read_yaml

PARTS = "parts"  # the folder of finished parts, a file for each


@strict
@dataclass(kw_only=True)
class CompareConfig:
    """One comparison; a section that is `None` is left out.

    Args:
        output_dir: its folder; the same command resumes in it.
        quality: a section for each task.
    """

    output_dir: str
    speed: SpeedConfig | None = None
    long_range: LongRangeConfig | None = None
    quality: dict[str, QualityConfig] | None = None


def load_compare_config(path: str | Path, overrides: list[str] | None = None) -> CompareConfig:
    """Read a YAML file, apply `section.key=value` overrides, and check everything.

    The files in `quality.….runs` are relative to this file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: as `load_run_config`; a comparison without a section; a task without a Transformer and a rival.
    """
    path = Path(path)
    config = build_section(CompareConfig, read_yaml(path, overrides), where="")
    if config.speed is None and config.long_range is None and not config.quality:
        raise ValueError(f"{path} compares nothing: give it one of the sections speed, long_range and quality")
    for name, task in (config.quality or {}).items():
        check_has_transformer(f"quality.{name}.runs", task.runs)
        if len(task.runs) < 2:
            raise ValueError(f"quality.{name}.runs={task.runs!r} must name at least two")
        task.runs = {model: str(path.parent / file) for model, file in task.runs.items()}
    return config


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
    allow_tf32(device)
    parts: dict[str, tuple[Any, Callable[..., Any]]] = {}  # name → the settings that its result depends on, measure
    if config.speed is not None:
        parts["speed"] = asdict(config.speed), partial(measure_speed, config.speed)
    if config.long_range is not None:
        measure = partial(measure_long_range, config.long_range, folder / "long_range")
        parts["long_range"] = asdict(config.long_range), measure
    if config.quality:
        place = folder / "quality"
        parts["quality"] = quality_settings(config.quality, place), partial(measure_quality, config.quality, place)
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
            measured = measure(device, partial(on_progress, name.replace("_", " ")))
            result = {"machine": _machine(device), "measured": measured}
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
    name = f"{platform.machine()} {device.type}"
    if device.type == "cuda":
        name = f"{torch.cuda.get_device_name(device)}, float32 by TF32 in all models"
    return {
        "device": f"{name}, {os.cpu_count()} cores",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "date": date.today().isoformat(),
    }
