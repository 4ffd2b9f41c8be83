# SPDX-License-Identifier: Apache-2.0
"""The model that fine-tuning starts from."""

from pathlib import Path

from vanilla_transformer.data.tokenizer import load_tokenizer
from vanilla_transformer.distributed.deepspeed_zero import zero_requested
from vanilla_transformer.distributed.fsdp import fsdp_requested
from vanilla_transformer.inference.model_folder import load_model_folder
from vanilla_transformer.seq2seq_base import BaseForConditionalGeneration
from vanilla_transformer.training.configuration import max_positions
from vanilla_transformer.training.finetuning_config import FineTuningConfig


def load_base_model(config: FineTuningConfig) -> BaseForConditionalGeneration:
    """The model of the folder or Hub id `config.model`.

    Raises:
        FileNotFoundError, ValueError: as `load_model_folder`; a model of another package, one whose tokenizer does not
            fit, or one that cannot read texts of `data.max_length`.
        ValueError: FSDP or DeepSpeed is requested; `training.output_dir` has checkpoints of an earlier version.
    """
    if fsdp_requested() or zero_requested(config.training.mixed_precision):
        raise ValueError("fine-tuning shares batches among processes, not weights: launch it without FSDP or DeepSpeed")
    trainer_checkpoints = sorted(path.name for path in Path(config.training.output_dir).glob("checkpoint-*"))
    if trainer_checkpoints:
        raise ValueError(
            f"{config.training.output_dir} holds checkpoints of transformers' Trainer "
            f"({', '.join(trainer_checkpoints)}), by which earlier versions fine-tuned; choose another "
            "training.output_dir to start anew, or go on with that version"
        )
    model, tokenizer = load_model_folder(config.model), load_tokenizer(config.model)
    if not isinstance(model, BaseForConditionalGeneration):
        raise ValueError(
            f"model={config.model} has model_type={model.config.model_type!r}; fine-tuning is for the models of this "
            "package, vanilla_transformer and rnn_seq2seq"
        )
    if len(tokenizer) > model.config.vocab_size:
        raise ValueError(
            f"model={config.model}: its tokenizer has {len(tokenizer)} tokens, its config.json "
            f"vocab_size={model.config.vocab_size}; they belong to different models"
        )
    if max_positions(model.config) < config.data.max_length:
        raise ValueError(
            f"data.max_length={config.data.max_length} is more than max_position_embeddings="
            f"{max_positions(model.config)} of model={config.model}; lower it"
        )
    return model
