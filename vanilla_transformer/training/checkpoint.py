# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: each one an ordinary model folder, with what a run needs to go on from there."""

import logging
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from transformers import PreTrainedTokenizerBase

from vanilla_transformer.distributed.fsdp import is_sharded
from vanilla_transformer.inference.weight_files import WEIGHTS, is_pickle_name
from vanilla_transformer.training.configuration import TrainingConfig
from vanilla_transformer.training.manifest import MANIFEST, find_damage, sync, sync_folder, write_manifest
from vanilla_transformer.training.progress import Progress
from vanilla_transformer.training.run_state import RunState

logger = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"  # in the run's output_dir
CHECKPOINT_NAME = re.compile(r"update-(\d{8})")
UNFINISHED, REPLACED = ".unfinished-", ".replaced-"  # before the name of a folder


def _make_empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _put_in_place(unfinished: Path, folder: Path) -> None:
    """All of `unfinished` is on the disk already. One that it replaces is there until it is not needed any more."""
    replaced = folder.with_name(f"{REPLACED}{folder.name}")
    if folder.exists():
        shutil.rmtree(replaced, ignore_errors=True)
        folder.rename(replaced)
    unfinished.rename(folder)
    sync(folder.parent)
    shutil.rmtree(replaced, ignore_errors=True)


@contextmanager
def _written(unfinished: Path, folder: Path) -> Iterator[None]:
    """The block writes to `unfinished`; if it cannot, what there is of it goes: a full disk should not be fuller."""
    try:
        yield
    except Exception as error:
        # Of a disk: Python's own, that of safetensors, and tokenizers raises a bare Exception.
        if not isinstance(error, OSError | SafetensorError) and type(error) is not Exception:
            raise
        shutil.rmtree(unfinished, ignore_errors=True)
        reason = " ".join(str(error).split())
        raise OSError(f"{folder} cannot be written ({reason}); what was there before is as it was") from error


@contextmanager
def replaced_whole(folder: Path) -> Iterator[Path]:
    """A folder beside `folder` to write into; it takes the place of `folder` if the block ends without an error.

    Raises:
        OSError: something cannot be written; nothing is left of it.
    """
    unfinished = folder.with_name(f"{UNFINISHED}{folder.name}")
    with _written(unfinished, folder):
        _make_empty(unfinished)
        yield unfinished
        sync_folder(unfinished)
    _put_in_place(unfinished, folder)


def clear_interrupted(folder: Path) -> None:
    """Remove what a process that was killed has left in `folder`; what it was about to replace is there again."""
    for path in sorted(folder.glob(f"{REPLACED}*")):
        whole = path.with_name(path.name.removeprefix(REPLACED))
        if whole.exists():
            shutil.rmtree(path)
        else:  # killed between two renames
            path.rename(whole)
    for path in folder.glob(f"{UNFINISHED}*"):
        shutil.rmtree(path)


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if CHECKPOINT_NAME.fullmatch(path.name))


def _updates(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("update-"))


class Checkpoints:
    """The folder `checkpoints/` of a run: `update-00001000/` and so on, of which the newest few are kept.

    One that a stop request wrote between two regular ones goes with the next of them: a run that was stopped and
    resumed ends with the same checkpoints, and the same average, as an uninterrupted one.

    Each opens with `from_pretrained`. One that is damaged (see `manifest.py`) counts for nothing.
    """

    def __init__(self, folder: Path, settings: TrainingConfig, tokenizer: PreTrainedTokenizerBase, state: RunState):
        self.folder = folder
        self.settings = settings
        self.tokenizer = tokenizer
        self.state = state
        self.accelerator = state.accelerator
        self._found: dict[Path, str | None] = {}  # what is wrong with those whose hashes were compared

    def save(self, progress: Progress) -> Path:
        """Written beside its place and renamed, so that a checkpoint is there whole or not at all.

        Raises:
            OSError: it cannot be written, for want of room perhaps; the ones before are as they were.
        """
        assert progress is self.state.progress
        checkpoint = self.folder / f"update-{progress.updates:08d}"
        unfinished = self.folder / f"{UNFINISHED}{checkpoint.name}"
        with _written(unfinished, checkpoint):
            if self.accelerator.is_main_process:
                _make_empty(unfinished)
            self.accelerator.wait_for_everyone()
            self._save_model(unfinished)
            self.state.save(unfinished)
            self.accelerator.wait_for_everyone()
            if self.accelerator.is_main_process:
                write_manifest(unfinished)
        if self.accelerator.is_main_process:
            _put_in_place(unfinished, checkpoint)
            self._found[checkpoint] = None
            kept = self.newest(self.settings.keep_checkpoints)
            assert checkpoint in kept
            for path in list_checkpoints(self.folder):
                if path not in kept:
                    shutil.rmtree(path)
        self.accelerator.wait_for_everyone()
        return checkpoint

    def newest(self, count: int) -> list[Path]:
        """The newest `count` checkpoints that are whole, oldest first: the regular ones and the very last."""
        found = [path for path in list_checkpoints(self.folder) if self._damage(path) is None]
        every = self.settings.checkpoint_every
        return [path for path in found if path == found[-1] or _updates(path) % every == 0][-count:]

    def load_latest(self) -> Path | None:
        """Restore weights, optimizer, schedule, random states and progress from the newest checkpoint that is whole.

        The main process chooses, and logs those that are damaged.

        Returns:
            The checkpoint; `None` if there is none at all.

        Raises:
            ValueError: all are damaged, or the newest that is not is of a version that wrote pickles.
        """
        choice: list[Path | ValueError | None] = [None]
        if self.accelerator.is_main_process:
            try:
                choice = [self._choose()]
            except ValueError as error:  # which the other processes would wait for
                choice = [error]
        [chosen] = broadcast_object_list(choice)
        if isinstance(chosen, ValueError):
            raise chosen
        if chosen is not None:
            self._load_model(chosen)
            self.state.load(chosen)
        return chosen

    def _choose(self) -> Path | None:
        damaged = []
        for path in reversed(list_checkpoints(self.folder)):
            pickled = sorted(file.name for file in path.iterdir() if is_pickle_name(file.name))
            if pickled and not (path / MANIFEST).exists():
                raise ValueError(
                    f"checkpoint {path} is of an earlier version, whose pickled files ({', '.join(pickled)}) are not "
                    "read any more; choose another training.output_dir to start anew, or go on with that version"
                )
            damage = self._damage(path)
            if damage is None:
                return path
            damaged.append(f"{path.name}: {damage}")
        if damaged:
            raise ValueError(
                f"all checkpoints in {self.folder} are damaged ({'; '.join(damaged)}); "
                "choose another training.output_dir, or remove that folder to start anew"
            )
        return None

    def _damage(self, checkpoint: Path) -> str | None:
        """Hashes are compared once in a process, then sizes: gigabytes should not be read again at every save. The
        first time that it is damaged, that is logged, whether it was to be resumed from, kept, or a part of the mean.

        One that was damaged remains so: a disk that gives its bytes now and then is not to be relied upon, and what is
        newer than the checkpoint that the run went on from is not this run's.
        """
        is_new = checkpoint not in self._found
        damage = self._found.get(checkpoint) or find_damage(checkpoint, hashes=is_new)
        if damage is not None and self._found.get(checkpoint) is None:
            logger.warning(f"checkpoint {checkpoint} is damaged and left out: {damage}")
        self._found[checkpoint] = damage
        return damage

    def _save_model(self, folder: Path) -> None:
        """Of a sharded model, which every process has a part of, all of it."""
        model = self.accelerator.unwrap_model(self.state.model)
        whole = None
        if is_sharded(model):
            whole = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
            for name in model.all_tied_weights_keys:  # each of which was gathered as a matrix of its own
                whole.pop(name, None)  # the other processes have nothing
        if self.accelerator.is_main_process:
            model.save_pretrained(folder, state_dict=whole)
            self.tokenizer.save_pretrained(folder)

    def _load_model(self, folder: Path) -> None:
        model, file = self.accelerator.unwrap_model(self.state.model), folder / WEIGHTS
        if is_sharded(model):
            # Not strict: of tables that are tied, the file has one.
            options = StateDictOptions(full_state_dict=True, strict=False)
            set_model_state_dict(model, dict[str, Any](load_file(file)), options=options)
        else:  # not by safetensors' load_model, to which ZeRO's weights, parts of one vector, are all shared
            weights = load_file(file)
            tied = {name: weights[kept] for name, kept in model.all_tied_weights_keys.items()}
            model.load_state_dict(weights | tied)
