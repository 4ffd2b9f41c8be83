# SPDX-License-Identifier: Apache-2.0
"""The vocabularies of a run's model: their sizes, and new rows of the embeddings when fine-tuning adds tokens."""

from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from vanilla_transformer.data.tokenizer_class import target_tokenizer
from vanilla_transformer.seq2seq_base import BaseForConditionalGeneration


def vocabulary_fields(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The fields of a model's configuration that the vocabularies decide."""
    target = target_tokenizer(tokenizer)
    if target is tokenizer:
        return {"vocab_size": len(tokenizer)}
    sizes = {"vocab_size": len(tokenizer), "decoder_vocab_size": len(target)}
    return sizes | {"share_encoder_decoder_embeddings": False}


def vocabulary_sizes(model: BaseForConditionalGeneration) -> tuple[int, int]:
    """Rows of the embeddings of source and target."""
    return model.config.vocab_size, model.config.decoder_vocab_size or model.config.vocab_size


def extend_vocabulary(model: BaseForConditionalGeneration, tokenizer: PreTrainedTokenizerBase) -> None:
    """Give the model rows for the tokens that were added to its tokenizer; all other rows stay as they are.

    transformers draws new rows around the mean of the old ones (Hewitt 2021). Rows that are there already, of a
    vocabulary that was padded, are used as they are.
    """
    source, target = vocabulary_sizes(model)
    if len(tokenizer) > source:
        model.resize_token_embeddings(len(tokenizer))
    if model.config.decoder_vocab_size is not None and len(target_tokenizer(tokenizer)) > target:
        model.resize_decoder_token_embeddings(len(target_tokenizer(tokenizer)))


def train_new_rows(model: BaseForConditionalGeneration, old_sizes: tuple[int, int]) -> None:
    """Beside a LoRA adapter, train the rows that `extend_vocabulary` has added; gradients of the old ones are zero.

    Args:
        old_sizes: `vocabulary_sizes` before.
    """
    source: Any = model.get_input_embeddings()
    decoder: Any = model.model.decoder
    own = [source.weight], [decoder.embed_tokens.weight, model.lm_head.weight, model.lm_head.bias]
    for size, weights in zip(old_sizes, own, strict=True):
        for weight in weights:
            if weight is not None and len(weight) > size and not weight.requires_grad:
                weight.requires_grad_(True).register_hook(_zero_rows(size))


def _zero_rows(rows: int) -> Any:
    def hook(gradient: torch.Tensor) -> torch.Tensor:
        gradient = gradient.clone()
        gradient[:rows] = 0
        return gradient

    return hook
