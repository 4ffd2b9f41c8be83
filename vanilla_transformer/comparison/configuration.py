# SPDX-License-Identifier: Apache-2.0
"""A comparison as one YAML file of three sections, each of which may be left out."""

from dataclasses import dataclass
from pathlib import Path

from huggingface_hub.dataclasses import strict

from vanilla_transformer.comparison.fairness import check_has_transformer
from vanilla_transformer.comparison.long_range import LongRangeConfig
from vanilla_transformer.comparison.quality import QualityConfig
from vanilla_transformer.comparison.speed import SpeedConfig
from vanilla_transformer.training.yaml_sections import build_section, read_yaml


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
