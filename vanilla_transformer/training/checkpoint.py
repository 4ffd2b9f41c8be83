# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: ordinary model folders, with the state that a run resumes from."""

import logging
import re
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from safetensors.torch import load_file
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from transformers import PreTrainedTokenizerBase

from vanilla_transformer.distributed.fsdp import full_state_dict, is_sharded
from vanilla_transformer.distributed.processes import wait_for_everyone
from vanilla_transformer.inference.weight_files import WEIGHTS, is_pickle_name
from vanilla_transformer.training.atomic_folder import atomic_folder
from vanilla_transformer.training.configuration import TrainingConfig
from vanilla_transformer.training.lora import ADAPTER_WEIGHTS, load_adapter, save_weights
from vanilla_transformer.training.manifest import MANIFEST, find_damage
from vanilla_transformer.training.train_state import TrainState

logger = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"  # in the run's output_dir
CHECKPOINT_NAME = re.compile(r"update-(\d{8})")


def checkpoint_name(updates: int) -> str:
    """The folder of the checkpoint after this many updates."""
    return f"update-{updates:08d}"


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if CHECKPOINT_NAME.fullmatch(path.name))


class Checkpoints:
    """The folder `checkpoints/` of a run: `update-00001000/` and so on; the newest few are kept.

    A checkpoint that a stop request wrote between two regular ones is removed with the next regular one. So a run that
    was stopped and resumed ends with the same checkpoints, and the same average, as an uninterrupted one.

    Each checkpoint opens with `from_pretrained`. Damaged ones (see `manifest.py`) are ignored.
    """

    def __init__(self, folder: Path, training: TrainingConfig, tokenizer: PreTrainedTokenizerBase, state: TrainState):
        self.folder = folder
        self.training = training
        self.tokenizer = tokenizer
        self.state = state
        self.accelerator = state.accelerator
        self._writing: Future[None] | None = None
        self._damages: dict[Path, str | None] = {}  # the finding for each checkpoint whose hashes were compared

    def save(self) -> None:
        """Copy the state, and write it while training goes on; all processes must call this.

        The main process writes for all. Checkpoints beyond `keep_checkpoints` are removed once it is there.

        Raises:
            OSError: as `wait`, of the checkpoint before.
        """
        self.wait()
        weights, write_state = self._copy_weights(), self.state.copy()
        if self.accelerator.is_main_process:
            checkpoint = self.folder / checkpoint_name(self.state.progress.updates)
            thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
            self._writing = thread.submit(self._write, checkpoint, weights, write_state)
            thread.shutdown(wait=False)

    def wait(self) -> None:
        """Wait until the last checkpoint is written; the main process alone knows of an error.

        Raises:
            OSError: it cannot be written; earlier checkpoints are as they were.
        """
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def _write(self, checkpoint: Path, weights: dict[str, Any], write_state: Callable[[Path], None]) -> None:
        with atomic_folder(checkpoint, manifest=True) as folder:
            save_weights(self.state.bare_model(), folder, weights)
            self.tokenizer.save_pretrained(folder)
            write_state(folder)
        self._damages[checkpoint] = None
        kept = self.newest(self.training.keep_checkpoints)
        assert checkpoint in kept
        for path in list_checkpoints(self.folder):
            if path not in kept:
                shutil.rmtree(path)

    def newest(self, count: int) -> list[Path]:
        """The newest `count` undamaged checkpoints, oldest first: the regular ones, and the last one in any case."""
        found = [path for path in list_checkpoints(self.folder) if self._damage(path) is None]
        every = self.training.checkpoint_every or 1  # without it all are regular
        updates = [int(path.name.removeprefix("update-")) for path in found]
        return [path for path, at in zip(found, updates, strict=True) if at == updates[-1] or at % every == 0][-count:]

    def load_latest(self) -> Path | None:
        """Restore model, optimizer, schedule, random states and progress from the newest undamaged checkpoint.

        Returns:
            The checkpoint; `None` if there is no checkpoint.

        Raises:
            ValueError: all are damaged, or the newest undamaged one is of a version that wrote pickles.
        """
        self.wait()
        choice: list[Path | ValueError | None] = [None]
        if self.accelerator.is_main_process:
            try:
                choice = [self._choose()]
            except ValueError as error:  # the other processes must raise it, too, or they would wait
                choice = [error]
        wait_for_everyone()  # the main process has read gigabytes
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
        """`find_damage`, logged when it is first found.

        Hashes are compared once in a process, and sizes afterwards: gigabytes should not be read at every save. A
        damaged checkpoint stays damaged: a disk that returns its bytes only now and then is not to be trusted, and the
        run has gone on from an older one.
        """
        is_new = checkpoint not in self._damages
        damage = self._damages.get(checkpoint) or find_damage(checkpoint, hashes=is_new)
        if damage is not None and self._damages.get(checkpoint) is None:
            logger.warning(f"checkpoint {checkpoint} is damaged and left out: {damage}")
        self._damages[checkpoint] = damage
        return damage

    def _copy_weights(self) -> dict[str, Any]:
        """Copies on the CPU, in the main process; all processes gather a sharded model's."""
        model = self.state.bare_model()
        if is_sharded(model):
            weights = full_state_dict(model, cpu_offload=True)
        elif self.accelerator.is_main_process:
            weights = {name: tensor.to("cpu", copy=True) for name, tensor in model.state_dict().items()}
        else:
            weights = {}
        for name in model.all_tied_weights_keys:  # copied once for each name
            weights.pop(name, None)
        return weights

    def _load_model(self, folder: Path) -> None:
        model = self.state.bare_model()
        if (folder / ADAPTER_WEIGHTS).is_file():
            load_adapter(model, folder)
            return
        weights = load_file(folder / WEIGHTS)
        if is_sharded(model):
            # Not strict: the file has one of several tied weights.
            options = StateDictOptions(full_state_dict=True, strict=False)
            set_model_state_dict(model, dict[str, Any](weights), options=options)
        else:  # safetensors' load_model would take ZeRO's weights, views of one vector, for tied ones
            tied = {name: weights[kept] for name, kept in model.all_tied_weights_keys.items()}
            model.load_state_dict(weights | tied)
