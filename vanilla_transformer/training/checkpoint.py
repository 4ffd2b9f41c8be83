# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: each one an ordinary model folder, with what Accelerate needs to go on from there."""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError

from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_model
from transformers import PreTrainedTokenizerBase

from vanilla_transformer.training.configuration import TrainingConfig
from vanilla_transformer.training.progress import Progress

CHECKPOINTS = "checkpoints"  # in the run's output_dir
CHECKPOINT_NAME = re.compile(r"update-(\d{8})")


@contextmanager
def replaced_whole(folder: Path) -> Iterator[Path]:
    """A folder beside `folder` to write into; it takes the place of `folder` if the block ends without an error."""
    unfinished = folder.with_name(f".unfinished-{folder.name}")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    yield unfinished
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)


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

    `accelerator.save_state` does the work; the hooks below replace its own file of weights by `save_pretrained`,
    so that every checkpoint opens with `from_pretrained` and weights are stored once.
    """

    def __init__(
        self, accelerator: Accelerator, folder: Path, settings: TrainingConfig, tokenizer: PreTrainedTokenizerBase
    ):
        self.accelerator = accelerator
        self.folder = folder
        self.settings = settings
        self.tokenizer = tokenizer
        accelerator.register_save_state_pre_hook(self._save_model)
        accelerator.register_load_state_pre_hook(self._load_model)

    def save(self, progress: Progress) -> Path:
        """Written beside its place and renamed, so that a checkpoint is there whole or not at all."""
        checkpoint = self.folder / f"update-{progress.updates:08d}"
        unfinished = self.folder / f".unfinished-{checkpoint.name}"
        if self.accelerator.is_main_process:
            shutil.rmtree(unfinished, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self.accelerator.save_state(str(unfinished))
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            shutil.rmtree(checkpoint, ignore_errors=True)  # the same updates, before the last validation
            unfinished.rename(checkpoint)
            kept = self.newest(self.settings.keep_checkpoints)
            for path in list_checkpoints(self.folder):
                if path not in kept:
                    shutil.rmtree(path)
        self.accelerator.wait_for_everyone()
        return checkpoint

    def newest(self, count: int) -> list[Path]:
        """The newest `count` checkpoints, oldest first: the regular ones and the very last."""
        found = list_checkpoints(self.folder)
        every = self.settings.checkpoint_every
        return [path for path in found if path == found[-1] or _updates(path) % every == 0][-count:]

    def load_latest(self) -> Path | None:
        """Restore weights, optimizer, schedule, random states and progress; `None` if there is no checkpoint.

        Raises:
            ValueError: its files are damaged.
        """
        checkpoints = list_checkpoints(self.folder)
        if not checkpoints:
            return None
        latest = checkpoints[-1]
        try:
            self.accelerator.load_state(str(latest))
        except (SafetensorError, EOFError, UnpicklingError, RuntimeError, OSError) as error:
            raise ValueError(
                f"checkpoint {latest} is damaged ({' '.join(str(error).split())[:200]}); remove that folder to go on "
                "from the one before"
            ) from error
        return latest

    def _save_model(self, models: list, weights: list, output_dir: str) -> None:
        if self.accelerator.is_main_process:
            self.accelerator.unwrap_model(models[0]).save_pretrained(output_dir)
            self.tokenizer.save_pretrained(output_dir)
        weights.clear()  # Accelerate then writes none of its own

    def _load_model(self, models: list, input_dir: str) -> None:
        load_model(self.accelerator.unwrap_model(models.pop()), Path(input_dir) / "model.safetensors")
