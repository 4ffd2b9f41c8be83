# SPDX-License-Identifier: Apache-2.0
"""A new model for a run's tokenizer."""

from transformers import AutoModelForSeq2SeqLM, GenerationConfig, PreTrainedTokenizerBase

from vanilla_transformer.seq2seq_base import BaseForConditionalGeneration
from vanilla_transformer.training.configuration import RunConfig, TrainingConfig, model_config_of


def build_model(config: RunConfig, tokenizer: PreTrainedTokenizerBase) -> BaseForConditionalGeneration:
    """A new model of the section `model`; its generation_config decodes as the section `generation` says.

    Raises:
        ValueError: there is no memory for it.
    """
    special_tokens = {
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "decoder_start_token_id": tokenizer.bos_token_id,
    }
    try:
        model = AutoModelForSeq2SeqLM.from_config(
            model_config_of(config.model, vocab_size=len(tokenizer), **special_tokens)
        )
    except RuntimeError as error:  # of torch's allocator
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


def configure_for_training(model: BaseForConditionalGeneration, training: TrainingConfig) -> None:
    if training.attention is not None:
        model.set_attn_implementation(training.attention)
    if training.gradient_checkpointing:
        model.activation_checkpointing_enable()
    model.train()
