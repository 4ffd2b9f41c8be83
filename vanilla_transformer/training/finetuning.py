# SPDX-License-Identifier: Apache-2.0
"""Fine-tuning a model folder by the training loop: all weights, or a LoRA adapter."""

from pathlib import Path

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from vanilla_transformer.data.corpus import load_corpus
from vanilla_transformer.data.tokenizer import load_tokenizer
from vanilla_transformer.distributed.deepspeed_zero import zero_requested
from vanilla_transformer.distributed.fsdp import fsdp_requested
from vanilla_transformer.inference.model_folder import load_model_folder
from vanilla_transformer.seq2seq_base import BaseForConditionalGeneration
from vanilla_transformer.training.configuration import max_positions
from vanilla_transformer.training.corpora import make_batches, prepare_corpora
from vanilla_transformer.training.export import export_finetuned_model
from vanilla_transformer.training.finetuning_config import FineTuningConfig
from vanilla_transformer.training.loop import fit
from vanilla_transformer.training.lora import add_adapter
from vanilla_transformer.training.model import configure_for_training
from vanilla_transformer.training.optimizer import build_finetuning_optimizer, planned_updates
from vanilla_transformer.training.setup import Run, claim_and_start, resume
from vanilla_transformer.training.train_state import TrainState
from vanilla_transformer.training.validation import Validation


def finetune(config: FineTuningConfig) -> tuple[Run, Validation | None]:
    """Fine-tune as configured, resuming where an earlier run of the same configuration stopped.

    Writes `output_dir/model`, a model folder with its tokenizer, and with `lora` also `output_dir/adapter`, which is
    merged into `model`; and `output_dir/results.json`, the facts for a model card.

    Raises:
        ValueError, FileNotFoundError, PermissionError: unusable model, data, configuration or folder, before any
            update.
        ValueError, SystemExit: as `fit`.
    """
    run = set_up_finetuning(config)
    validation = fit(run)
    export_finetuned_model(run, config, validation)
    run.state.accelerator.end_training()
    return run, validation


def set_up_finetuning(config: FineTuningConfig) -> Run:
    """Everything before the first update, or before the next one of a run that stopped.

    Raises:
        ValueError, FileNotFoundError, PermissionError: as `finetune`.
    """
    if fsdp_requested() or zero_requested(config.training.mixed_precision):
        raise ValueError("fine-tuning shares batches among processes, not weights: launch it without FSDP or DeepSpeed")
    model, tokenizer = load_model(config)
    _check_no_trainer_checkpoints(Path(config.training.output_dir))
    accelerator = claim_and_start(config)
    with accelerator.main_process_first():
        assert config.data.train is not None
        text = load_corpus(config.data.train)
        assert isinstance(text, Dataset)  # the configuration refuses a stream
        corpora = prepare_corpora(config.data, text, tokenizer)
    order, batches = make_batches(corpora.train, config.training, tokenizer, accelerator)
    configure_for_training(model, config.training)
    if config.lora is not None:
        add_adapter(model, config.lora)  # draws its weights, after the seed is set
    optimizer, schedule = build_finetuning_optimizer(config.optimizer, model, planned_updates(config.training, order))
    prepared, optimizer = accelerator.prepare(model, optimizer)
    progress = corpora.new_progress(accelerator.num_processes)
    state = TrainState(accelerator, prepared, optimizer, schedule, progress)
    return resume(config, state, tokenizer, corpora, order, batches)


def load_model(config: FineTuningConfig) -> tuple[BaseForConditionalGeneration, PreTrainedTokenizerBase]:
    """The model to start from, and its tokenizer.

    Raises:
        FileNotFoundError, ValueError: as `load_model_folder`; it is not of this package, its tokenizer does not fit,
            or it cannot read texts of `data.max_length`.
    """
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
    return model, tokenizer


def _check_no_trainer_checkpoints(output_dir: Path) -> None:
    found = sorted(path.name for path in output_dir.glob("checkpoint-*"))
    if found:
        raise ValueError(
            f"{output_dir} holds checkpoints of transformers' Trainer ({', '.join(found)}), by which earlier versions "
            "fine-tuned; choose another training.output_dir to start anew, or go on with that version"
        )
