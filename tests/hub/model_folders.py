# SPDX-License-Identifier: Apache-2.0
"""A folder that may be published, and whether another is the same."""

import filecmp
from pathlib import Path
from typing import Any

import torch

from vanilla_transformer import VanillaTransformerConfig, VanillaTransformerForConditionalGeneration
from vanilla_transformer.data.tokenizer import TokenizerConfig, load_tokenizer, train_tokenizer
from vanilla_transformer.data.tokenizer_class import with_target
from vanilla_transformer.hub.model_card import ModelCardFacts, write_model_card
from vanilla_transformer.inference.model_folder import load_model_folder
from vanilla_transformer.training.vocabulary import vocabulary_fields


def write_model_folder(
    folder: Path, seed: int = 1, vocab_size: int = 12, target: str | None = None, **save_options
) -> Path:
    """A tiny model, complete; another seed, other weights. More of the vocabulary, more weights.

    Args:
        target: the symbols of a second vocabulary.
    """
    torch.manual_seed(seed)
    tokenizer = train_tokenizer(["a b c d e f g h"], TokenizerConfig(kind="symbols"))
    if target is not None:
        tokenizer = with_target(tokenizer, train_tokenizer([target], TokenizerConfig(kind="symbols")))
    sizes = vocabulary_fields(tokenizer) | {"vocab_size": vocab_size}
    config = VanillaTransformerConfig(**sizes, d_model=16, d_ff=32, num_layers=1, num_heads=2)
    model = VanillaTransformerForConditionalGeneration(config)
    model.save_pretrained(folder, **save_options)
    tokenizer.save_pretrained(folder)
    write_model_card(folder, facts=ModelCardFacts(model_name="tiny", parameters=model.num_parameters()))
    return folder


def write_exportable_folder(model_folder: Path, folder: Path, **facts: Any) -> Path:
    """The model of the fixture `model_folder`, which decodes "a b c" to the same words in every runtime.

    EOS is likely enough that the target ends: other runtimes know no `max_tokens_beyond_source`. Decoding is
    CTranslate2's by default.
    """
    model: Any = load_model_folder(model_folder)
    with torch.no_grad():
        model.lm_head.weight[model.config.eos_token_id] = 0.1
    settings = model.generation_config
    settings.num_beams, settings.length_penalty, settings.early_stopping = 4, 1.0, True
    model.save_pretrained(folder)
    load_tokenizer(model_folder).save_pretrained(folder)
    facts = {"model_name": "reverser", "parameters": model.num_parameters(), "example_input": "a b c"} | facts
    write_model_card(folder, facts=ModelCardFacts(**facts))
    return folder


def targets_of_example(folder: Path) -> list[str]:
    """The target of "a b c" by transformers' beam search of our model."""
    model: Any = load_model_folder(folder)
    tokenizer = load_tokenizer(folder)
    found = model.generate(**tokenizer(["a b c"], return_tensors="pt"))
    return tokenizer.batch_decode(found, skip_special_tokens=True)


def same(first: Path, second: Path) -> bool:
    """File by file; in the card a push names the model by its id."""
    names = {path.relative_to(folder).as_posix() for folder in (first, second) for path in folder.rglob("*")}
    files = [name for name in names if not ((first / name).is_dir() and (second / name).is_dir())]
    by_id = ("name = ", "vanilla-transformer translate ")
    cards = [[line for line in card_lines(folder) if not line.startswith(by_id)] for folder in (first, second)]
    others = [name for name in files if name != "README.md"]
    return cards[0] == cards[1] and filecmp.cmpfiles(first, second, others, shallow=False)[1:] == ([], [])


def card_lines(folder: Path) -> list[str]:
    card = folder / "README.md"
    return card.read_text("utf-8").splitlines() if card.exists() else []
