# SPDX-License-Identifier: Apache-2.0
"""The folder of a run: whose it is, and whether this run may go on in it."""

from pathlib import Path
from typing import Any

import yaml

from vanilla_transformer.distributed.processes import process_state
from vanilla_transformer.training.checkpoint import CHECKPOINTS, clear_interrupted, list_checkpoints
from vanilla_transformer.training.configuration import RunConfig
from vanilla_transformer.training.run_lock import lock_for_this_run

# What may change between the parts of a resumed run; everything else would make it another run.
MAY_CHANGE = {
    "data": {"test", "name", "license", "weights_license", "source_language", "target_language"},
    "training": {
        "output_dir",
        "resume",
        "max_updates",
        "max_epochs",
        "max_minutes",
        "log_every",
        "trackers",
        "keep_checkpoints",
        "max_skipped_in_a_row",
    }
    | {"average_checkpoints", "validate_every", "checkpoint_every", "validation_beams", "validation_sentences"},
    "generation": {"num_beams", "alpha", "length_penalty", "max_tokens_beyond_source", "batch_tokens"},
}
# The contents decide whether a corpus is the same, when they are read (`preparation`), and not the path to them.
PLACES = ("source", "target", "path", "dataset")


def claim_output_dir(config: RunConfig) -> Path:
    """Make the run's folder, keep other runs out of it, and write the resolved configuration into it.

    What an earlier part of the run has left half written is removed first.

    Raises:
        ValueError: another process runs in the folder, or it holds a run with another configuration; the message names
            the process, or the first difference.
        PermissionError: the folder cannot be written.
    """
    output_dir = Path(config.training.output_dir)
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        if process_state().is_main_process:
            lock_for_this_run(output_dir)
            clear_interrupted(output_dir / CHECKPOINTS)
        resolved = output_dir / "config.yaml"
        values = config.to_dict()
        if list_checkpoints(output_dir / CHECKPOINTS):
            if not config.training.resume:
                raise ValueError(
                    f"{output_dir} holds the checkpoints of a run, which training.resume=false would not go on from; "
                    "choose another training.output_dir, or remove that folder"
                )
            difference = _first_difference(_read_resolved(resolved), values)
            if difference:
                raise ValueError(
                    f"{output_dir} holds a run with another {difference}; "
                    "choose another training.output_dir, or remove that folder to start anew"
                )
        if process_state().is_main_process:
            unfinished = output_dir / ".config.yaml"
            unfinished.write_text(yaml.safe_dump(values, sort_keys=False, allow_unicode=True), encoding="utf-8")
            unfinished.replace(resolved)
    except OSError as error:
        raise PermissionError(
            f"training.output_dir={output_dir} cannot be written ({error.strerror}); choose another folder"
        ) from error
    return output_dir


def _read_resolved(path: Path) -> dict[str, Any]:
    try:
        return yaml.safe_load(path.read_text("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}, which tells what its run is, is damaged: {' '.join(str(error).split())}") from error


def _first_difference(before: dict[str, Any], now: dict[str, Any]) -> str | None:
    for section, values in now.items():
        old = before.get(section) or {}
        for key in sorted(set(old) | set(values)):
            then, new = identity(key, old.get(key)), identity(key, values.get(key))
            if key not in MAY_CHANGE.get(section, ()) and then != new:
                return f"{section}.{key} ({old.get(key)!r} there, {values.get(key)!r} now)"
    return None


def identity(key: str, value: Any) -> Any:
    """The value in a form that runs can be compared by: paths are resolved, and a corpus has no place."""
    if key in ("path", "model") and value is not None:
        return Path(value).resolve()
    if isinstance(value, dict):
        return {key: inner is not None if key in PLACES else identity("", inner) for key, inner in value.items()}
    return value
