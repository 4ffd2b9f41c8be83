# SPDX-License-Identifier: Apache-2.0
"""A folder that may be published, and whether another is the same."""

import filecmp
from pathlib import Path

import torch

from vanilla_transformer import VanillaTransformerConfig, VanillaTransformerForConditionalGeneration
from vanilla_transformer.data.tokenizer import TokenizerConfig, train_tokenizer
from vanilla_transformer.hub.model_card import ModelCardFacts, write_model_card


def write_model_folder(folder: Path, seed: int = 1, vocab_size: int = 12, **save_options) -> Path:
    """A tiny model, complete; another seed, other weights. More of the vocabulary, more weights."""
    torch.manual_seed(seed)
    config = VanillaTransformerConfig(vocab_size=vocab_size, d_model=16, d_ff=32, num_layers=1, num_heads=2)
    model = VanillaTransformerForConditionalGeneration(config)
    model.save_pretrained(folder, **save_options)
    train_tokenizer(["a b c d e f g h"], TokenizerConfig(kind="symbols")).save_pretrained(folder)
    write_model_card(folder, facts=ModelCardFacts(model_name="tiny", parameters=model.num_parameters()))
    return folder


def same(first: Path, second: Path) -> bool:
    """File by file; in the card a push names the model by its id."""
    names = {path.relative_to(folder).as_posix() for folder in (first, second) for path in folder.rglob("*")}
    files = [name for name in names if not ((first / name).is_dir() and (second / name).is_dir())]
    cards = [[line for line in card_lines(folder) if not line.startswith("name = ")] for folder in (first, second)]
    others = [name for name in files if name != "README.md"]
    return cards[0] == cards[1] and filecmp.cmpfiles(first, second, others, shallow=False)[1:] == ([], [])


def card_lines(folder: Path) -> list[str]:
    card = folder / "README.md"
    return card.read_text("utf-8").splitlines() if card.exists() else []
