# SPDX-License-Identifier: Apache-2.0
"""The configs that this package ships, which commands find by their names: `train paper/base`."""

from pathlib import Path

_PACKAGE = Path(__file__).parents[1]
# A wheel has them within the package, a checkout beside it.
CONFIGS = (_PACKAGE if (_PACKAGE / "configs").is_dir() else _PACKAGE.parent) / "configs"


def config_names() -> list[str]:
    """The names of the shipped configs: their paths without ".yaml"."""
    files = (file.relative_to(CONFIGS).with_suffix("") for file in CONFIGS.rglob("*.yaml"))
    return sorted(file.as_posix() for file in files if file.parts[0] != "accelerate")  # those are for its launcher


def find_config(config: str) -> Path:
    """The file of a shipped config, by its name; anything else is a path. A file that exists wins."""
    path = Path(config)
    return path if path.is_file() or config not in config_names() else CONFIGS / f"{config}.yaml"


def missing_config(path: Path) -> str:
    """The message for a file that does not exist, with the shipped names where the path looks like one."""
    names = "" if path.suffix in (".yaml", ".yml") else f"; by name there are {', '.join(config_names())}"
    return f"configuration {path} does not exist{names}"
