# SPDX-License-Identifier: Apache-2.0
"""The model of a run: a new one for its tokenizer, or the one that fine-tuning starts from."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSeq2SeqLM, GenerationConfig, PreTrainedTokenizerBase

from vanilla_transformer.data.tokenizer import load_tokenizer
from vanilla_transformer.data.tokenizer_class import target_tokenizer
from vanilla_transformer.inference.model_folder import load_model_folder
from vanilla_transformer.seq2seq_base import BaseForConditionalGeneration
from vanilla_transformer.training.configuration import (
    RunConfig,
    TrainingConfig,
    max_positions,
    model_config_of,
    refuse_compiled_rnn,
)
from vanilla_transformer.training.finetuning import FineTuningConfig
from vanilla_transformer.training.vocabulary import vocabulary_fields, vocabulary_sizes
from vanilla_transformer.transformers_differences import recompute_activations

# Of encoder and decoder layers together. Batches with and without padding, of one pair or one token, and of as many
# pairs as tokens have graphs of their own; torch's limit is 8, and beyond it a layer would be computed without a graph.
MAX_GRAPHS = 64


def build_model(config: RunConfig, tokenizer: PreTrainedTokenizerBase) -> BaseForConditionalGeneration:
    """A new model of the section `model`; its generation_config decodes as the section `generation` says.

    Raises:
        ValueError: there is no memory for it.
    """
    target = target_tokenizer(tokenizer)
    special_tokens = {
        "pad_token_id": target.pad_token_id,
        "bos_token_id": target.bos_token_id,
        "eos_token_id": target.eos_token_id,
        "decoder_start_token_id": target.bos_token_id,
    }
    try:
        model = AutoModelForSeq2SeqLM.from_config(
            model_config_of(config.model, **vocabulary_fields(tokenizer), **special_tokens)
        )
    except RuntimeError as error:  # from torch's allocator
        raise ValueError(
            f"there is no memory for the model {config.model}; lower its sizes in the section model "
            f"({' '.join(str(error).split())})"
        ) from error
    generation = config.generation
    # transformers refuses these for greedy decoding
    beam_options = {"length_penalty": generation.length_penalty, "early_stopping": True}
    model.generation_config = GenerationConfig(
        num_beams=generation.num_beams,
        **(beam_options if generation.num_beams > 1 else {}),
        alpha=generation.alpha,
        max_tokens_beyond_source=generation.max_tokens_beyond_source,
        **special_tokens,
    )
    return model


def load_base_model(config: FineTuningConfig) -> BaseForConditionalGeneration:
    """The model of the folder or Hub id `config.model`.

    Raises:
        FileNotFoundError, ValueError: as `load_model_folder`; a model of another package, one whose tokenizer does not
            fit, or one that cannot read texts of `data.max_length`.
        ValueError: `training.output_dir` has checkpoints of an earlier version.
    """
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
    refuse_compiled_rnn(model.config, config.training)
    names, sides = ("vocab_size", "decoder_vocab_size"), (tokenizer, target_tokenizer(tokenizer))
    for name, side, size in zip(names, sides, vocabulary_sizes(model), strict=True):
        if len(side) > size:
            raise ValueError(
                f"model={config.model}: its tokenizer has {len(side)} tokens, its config.json {name}={size}; they "
                "belong to different models"
            )
    if max_positions(model.config) < config.data.max_length:
        raise ValueError(
            f"data.max_length={config.data.max_length} is more than max_position_embeddings="
            f"{max_positions(model.config)} of model={config.model}; lower it"
        )
    return model


def configure_for_training(model: BaseForConditionalGeneration, training: TrainingConfig) -> None:
    """Set attention backend, gradient checkpointing and compilation of the section `training`, and train mode."""
    if training.attention is not None:
        model.set_attn_implementation(training.attention)
    if training.gradient_checkpointing:
        recompute_activations(model)
        # Hooks for checkpoints of another kind; with them, the fast decoder would not decode the validation.
        model.disable_input_require_grads()
    if training.compile:
        compile_layers(model)
    model.train()


def compile_layers(model: Any, backend: str = "inductor") -> None:
    """Compile a Transformer's layers in place, one by one, for batches of any shape.

    All layers of a kind share their graphs, and the names of the weights stay as they are.
    """
    torch._dynamo.config.recompile_limit = MAX_GRAPHS
    for layer in [*model.model.encoder.layers, *model.model.decoder.layers]:
        layer.compile(dynamic=True, backend=backend)
