# SPDX-License-Identifier: Apache-2.0
"""The folder of a run: whether it is free, and whether this run may go on in it."""

import platform
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any

import yaml

from vanilla_transformer.console.outputs import write_atomically
from vanilla_transformer.data.mixture import NamedCorpusConfig
from vanilla_transformer.distributed.processes import process_state
from vanilla_transformer.training.atomic_folder import clear_interrupted
from vanilla_transformer.training.checkpoint import CHECKPOINTS, list_checkpoints
from vanilla_transformer.training.configuration import RunConfig
from vanilla_transformer.training.finetuning import FineTuningConfig
from vanilla_transformer.training.run_lock import lock_for_this_run

# A resumed run may change these; any other change makes it another run.
MAY_CHANGE = {
    "data": {"test", "name", "license", "weights_license", "source_language", "target_language"},
    "tokenizer": {"max_training_lines"},  # a run that goes on has its tokenizer
    "training": {
        *("output_dir", "resume", "trackers", "max_updates", "max_epochs", "max_minutes", "max_skipped_in_a_row"),
        *("log_every", "validate_every", "checkpoint_every", "keep_checkpoints", "average_checkpoints"),
        *(
            "validation_beams",
            "validation_sentences",
            "profile_updates",
            "validate_every_minutes",
            "checkpoint_every_minutes",
            "patience",
        ),
    },
    "generation": {"num_beams", "alpha", "length_penalty", "max_tokens_beyond_source", "batch_tokens"},
}
# A corpus is compared by its contents when they are read (`corpora`), and not by its path.
PLACES = ("source", "target", "path", "dataset")


def claim_output_dir(config: RunConfig | FineTuningConfig) -> None:
    """Make the run's folder, lock it, clear what a killed run left half written, and write the resolved configuration.

    Raises:
        ValueError: another process runs in the folder, or it holds a run with another configuration; the message names
            the process, or the first difference. The main process has written to another disk.
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
        text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
        if not process_state().is_main_process:  # the main one comes first
            _check_shared(resolved, text)
        if list_checkpoints(output_dir / CHECKPOINTS):
            if not config.training.resume:
                raise ValueError(
                    f"{output_dir} holds the checkpoints of a run, which training.resume=false would not go on from; "
                    "choose another training.output_dir, or remove that folder"
                )
            difference = _first_difference(_with_new_fields(_read_resolved(resolved), config), values)
            if difference:
                raise ValueError(
                    f"{output_dir} holds a run with another {difference}; "
                    "choose another training.output_dir, or remove that folder to start anew"
                )
        if process_state().is_main_process:
            write_atomically(resolved, text)
    except OSError as error:
        raise PermissionError(
            f"training.output_dir={output_dir} cannot be written ({error.strerror}); choose another folder"
        ) from error


def _read_resolved(path: Path) -> dict[str, Any]:
    try:
        return yaml.safe_load(path.read_text("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}, which tells what its run is, is damaged: {' '.join(str(error).split())}") from error


def _check_shared(resolved: Path, text: str) -> None:
    """A process on another machine would read a tokenizer and checkpoints that are not there, or not the run's."""
    if not resolved.is_file() or resolved.read_text("utf-8") != text:
        state = process_state()
        raise ValueError(
            f"training.output_dir={resolved.parent}: process {state.process_index} on {platform.node()} does not see "
            "there what the main process wrote; choose a folder on a disk that all machines share"
        )


def _with_new_fields(before: Any, now: Any) -> Any:
    """The values of a run, with the defaults of fields that there were not yet when it began."""
    if isinstance(before, list) and isinstance(now, list):
        named = {each.name: each for each in now if isinstance(each, NamedCorpusConfig)}
        return [_with_new_fields(item, named.get(item["name"])) if named else item for item in before]
    if not is_dataclass(now) or not isinstance(before, dict):
        return before
    defaults = {field.name: field.default for field in fields(now) if field.default is not MISSING}
    return defaults | {key: _with_new_fields(item, getattr(now, key, None)) for key, item in before.items()}


def _first_difference(before: dict[str, Any], now: dict[str, Any]) -> str | None:
    for section, new in now.items():
        old = before.get(section)
        if not isinstance(new, dict) or not isinstance(old, dict | None):
            if _identity(section, old) != _identity(section, new):
                return f"{section} ({old!r} there, {new!r} now)"
            continue
        old, new = _by_field(old or {}), _by_field(new)
        for key in sorted(set(old) | set(new)):
            differs = _identity(key, old.get(key)) != _identity(key, new.get(key))
            if differs and key.partition("[")[0] not in MAY_CHANGE.get(section, ()):
                return f"{section}.{key} ({old.get(key)!r} there, {new.get(key)!r} now)"
    return None


def _by_field(section: dict[str, Any]) -> dict[str, Any]:
    """A section whose lists of corpora are their names, and every field of each by its name."""
    values = {}
    for key, value in section.items():
        if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            values[f"{key}[].name"] = [item["name"] for item in value]
            values |= {f"{key}[{item['name']}].{name}": inner for item in value for name, inner in item.items()}
        else:
            values[key] = value
    return values


def _identity(key: str, value: Any) -> Any:
    """The value in a form that runs can be compared by: paths are resolved, and those of a corpus left out."""
    if key in ("path", "target_path", "model") and isinstance(value, str):
        return Path(value).resolve()
    if "[" in key and key.rpartition(".")[2] in PLACES:
        return value is not None
    if isinstance(value, dict):
        return {key: inner is not None if key in PLACES else _identity("", inner) for key, inner in value.items()}
    return value
