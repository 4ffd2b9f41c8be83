# SPDX-License-Identifier: Apache-2.0
"""transformers' Seq2SeqTrainer with the batches, the evaluation and the checkpoints of this package."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import Seq2SeqTrainer
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, EvalLoopOutput, rotate_checkpoints

from vanilla_transformer.data.batches import TokenBatchSampler
from vanilla_transformer.distributed.fsdp import is_sharding_asked_for
from vanilla_transformer.generation import beam_search
from vanilla_transformer.loss import IGNORED
from vanilla_transformer.training.manifest import MANIFEST, write_manifest
from vanilla_transformer.training.progress import Progress
from vanilla_transformer.training.run_state import RunState

INPUTS = ["input_ids", "labels"]
SMOOTHED_ALREADY = "the model smooths by itself, by label_smoothing of its config.json: a second time is one too many"


class TokenBatches(DataLoader):
    """A loader whose order Trainer can set: it asks the loader, which must hand it on to its batch sampler."""

    def set_epoch(self, epoch: int) -> None:
        assert isinstance(self.batch_sampler, TokenBatchSampler)
        self.batch_sampler.set_epoch(epoch)


class TokenBatchTrainer(Seq2SeqTrainer):
    """Seq2SeqTrainer with batches by token budget, and evaluation by the paper's beam search.

    Args:
        budgets: `max_source_tokens` and `max_target_tokens` of a batch of one process.
        corpora: the fingerprints of the corpora, which checkpoints hold.
        options: Seq2SeqTrainer's own. `train_dataset` is what `prepare_pairs` makes.

    Raises:
        ValueError: `args` would smooth labels that the model smooths; FSDP or DeepSpeed; as `TokenBatchSampler`.
    """

    def __init__(self, *, budgets: dict[str, int], corpora: Progress, **options):
        self.corpora = corpora
        arguments = options["args"]
        if arguments.label_smoothing_factor != 0:
            raise ValueError(f"label_smoothing_factor={arguments.label_smoothing_factor} must be 0: {SMOOTHED_ALREADY}")
        is_sharding = is_sharding_asked_for()  # on CPUs too, where Accelerate would ignore it
        super().__init__(**options)
        if is_sharding or self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise ValueError(
                "fine-tuning shares batches among processes, not weights: launch it without FSDP or DeepSpeed"
            )
        pairs = options["train_dataset"]
        seed = arguments.seed if arguments.data_seed is None else arguments.data_seed
        self.order = TokenBatchSampler(
            pairs["source_length"],
            pairs["target_length"],
            max_source_tokens=budgets["max_source_tokens"],
            max_target_tokens=budgets["max_target_tokens"],
            seed=seed,
            num_processes=arguments.world_size,
            process_index=arguments.process_index,
        )

    def get_train_dataloader(self) -> DataLoader:
        # Not prepared by Accelerate, which would share out once more what each process has for itself already.
        assert isinstance(self.train_dataset, Dataset)
        rows: Any = self.train_dataset.select_columns(INPUTS)  # a Dataset is what torch's class of that name describes
        arguments = self.args
        return TokenBatches(
            rows,
            batch_sampler=self.order,
            collate_fn=self.data_collator,
            num_workers=arguments.dataloader_num_workers,
            pin_memory=arguments.dataloader_pin_memory and arguments.device.type == "cuda",
            persistent_workers=arguments.dataloader_persistent_workers,
            prefetch_factor=arguments.dataloader_prefetch_factor,
        )

    def get_total_train_batch_size(self, args: Any) -> int:
        """Pairs of an update, on the average; Trainer counts speed by it."""
        return round(self.order.num_pairs / len(self.order) * args.gradient_accumulation_steps)

    def compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, **options) -> Any:
        """Without the logits, unless the caller or a loss of the user's own reads them."""
        if not return_outputs and self.compute_loss_func is None:
            inputs = inputs | {"skip_logits": True}
        return super().compute_loss(model, inputs, return_outputs, **options)

    def evaluate(self, *arguments, **options) -> dict[str, float]:
        return super().evaluate(*arguments, **({"custom_generate": beam_search} | options))

    def evaluation_loop(self, *arguments, metric_key_prefix: str = "eval", **options) -> EvalLoopOutput:
        """The loss is the mean over target tokens, as in the training loop; Trainer's is the mean over batches."""
        self.sums = torch.zeros(2)  # loss, target tokens
        output = super().evaluation_loop(*arguments, metric_key_prefix=metric_key_prefix, **options)
        sums: Any = self.accelerator.reduce(self.sums.to(self.args.device))
        loss, tokens = sums.tolist()
        if tokens:  # none if there are no labels
            assert output.metrics is not None
            output.metrics[f"{metric_key_prefix}_loss"] = loss / tokens
        return output

    def prediction_step(self, model: Any, inputs: dict[str, Any], *arguments, **options):
        loss: Any
        self._forget_repeated_pairs(inputs)
        loss, *others = super().prediction_step(model, inputs, *arguments, **options)
        if loss is not None:
            tokens = (inputs["labels"] != IGNORED).sum().item()
            if tokens:  # the mean of none is no number
                self.sums += torch.tensor([loss.item() * tokens, tokens])
        return loss, *others

    def _forget_repeated_pairs(self, inputs: dict[str, Any]) -> None:
        """Where pairs do not divide evenly, Accelerate fills the last batches with the first ones, after all others."""
        state = self.accelerator.gradient_state
        if state.end_of_dataloader and state.remainder > 0 and "labels" in inputs:
            before = self.args.process_index * len(inputs["labels"])
            inputs["labels"][max(0, state.remainder - before) :] = IGNORED

    # What a checkpoint holds beside the model, as those of the training loop do; Trainer would pickle it.

    def _run_state(self) -> RunState:
        assert self.model is not None
        optimizer: Any = self.optimizer
        schedule: Any = self.lr_scheduler
        return RunState(self.accelerator, self.model, optimizer, schedule, replace(self.corpora))

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        """Trainer writes in place: what a stop cuts short has no manifest. Older ones go when the new one is whole."""
        folder = Path(self._get_output_dir(trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        if self.args.should_save:
            (folder / MANIFEST).unlink(missing_ok=True)  # of one that was passed over as damaged
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit = limit
        self.accelerator.wait_for_everyone()  # each process has written its part
        if self.args.should_save:
            write_manifest(folder)
            rotate_checkpoints(str(folder.parent), limit, self.state.best_model_checkpoint)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, state_dict)
        folder = output_dir or self.args.output_dir
        assert folder is not None
        (Path(folder) / TRAINING_ARGS_NAME).unlink(missing_ok=True)  # nobody reads it

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        Path(output_dir).mkdir(parents=True, exist_ok=True)  # the main process may be behind
        self._run_state().save(Path(output_dir))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            self._run_state().load(Path(checkpoint))

    def _save_scaler(self, output_dir: str) -> None:
        """Saved with the optimizer."""

    def _load_scaler(self, checkpoint: str | None) -> None:
        """Loaded with the optimizer."""

    def _save_rng_state(self, output_dir: str) -> None:
        """Saved with the optimizer."""

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Once more, before the first update: Trainer has drawn numbers since it loaded the optimizer."""
        self._load_optimizer_and_scheduler(checkpoint)
