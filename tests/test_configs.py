# SPDX-License-Identifier: Apache-2.0
"""Every config under configs/ loads, and those of configs/paper are the rows of Table 3."""

from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import yaml

from vanilla_transformer import VanillaTransformerConfig, VanillaTransformerForConditionalGeneration
from vanilla_transformer.training.configuration import load_run_config

CONFIGS = Path(__file__).parents[1] / "configs"
PAPER = CONFIGS / "paper"
VOCABULARY = 37000  # section 5.1
LONGEST = 1024  # rows of a learned position table


class Row(NamedTuple):
    """A row of Table 3, with the values that it takes over from "base", and the parameters of our model."""

    parameters: int
    num_layers: int = 6
    d_model: int = 512
    d_ff: int = 2048
    num_heads: int = 8
    d_k: int = 64
    d_v: int = 64
    dropout: float = 0.1
    label_smoothing: float = 0.1
    position_embedding: str = "sinusoidal"
    max_updates: int = 100_000


TABLE_3 = {
    "base": Row(63_045_632),
    "a_1_head": Row(63_045_632, num_heads=1, d_k=512, d_v=512),
    "a_4_heads": Row(63_045_632, num_heads=4, d_k=128, d_v=128),
    "a_16_heads": Row(63_045_632, num_heads=16, d_k=32, d_v=32),
    "a_32_heads": Row(63_045_632, num_heads=32, d_k=16, d_v=16),
    "b_d_k_16": Row(55_967_744, d_k=16),
    "b_d_k_32": Row(58_327_040, d_k=32),
    "c_2_layers": Row(33_644_544, num_layers=2),
    "c_4_layers": Row(48_345_088, num_layers=4),
    "c_8_layers": Row(77_746_176, num_layers=8),
    "c_d_model_256": Row(26_816_512, d_model=256, d_k=32, d_v=32),
    "c_d_model_1024": Row(163_815_424, d_model=1024, d_k=128, d_v=128),
    "c_d_ff_1024": Row(50_450_432, d_ff=1024),
    "c_d_ff_4096": Row(88_236_032, d_ff=4096),
    "d_dropout_0": Row(63_045_632, dropout=0.0),
    "d_dropout_0.2": Row(63_045_632, dropout=0.2),
    "d_label_smoothing_0": Row(63_045_632, label_smoothing=0.0),
    "d_label_smoothing_0.2": Row(63_045_632, label_smoothing=0.2),
    # Base and a table of 1024 positions in each of the two stacks.
    "e_learned_positions": Row(63_045_632 + 2 * 1024 * 512, position_embedding="learned"),
    "big": Row(214_171_648, d_model=1024, d_ff=4096, num_heads=16, dropout=0.3, max_updates=300_000),
}


def parameters_by_the_paper(row: Row) -> int:
    """Section 3: no biases but those of the feed-forward networks, one embedding matrix, no final LayerNorm."""
    attention = row.d_model * row.num_heads * (2 * row.d_k + 2 * row.d_v)  # W^Q and W^K, W^V and W^O
    feed_forward = 2 * row.d_model * row.d_ff + row.d_ff + row.d_model
    layer_norm = 2 * row.d_model
    encoder_layer = attention + feed_forward + 2 * layer_norm
    decoder_layer = 2 * attention + feed_forward + 3 * layer_norm
    positions = 2 * LONGEST * row.d_model if row.position_embedding == "learned" else 0
    return VOCABULARY * row.d_model + row.num_layers * (encoder_layer + decoder_layer) + positions


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: str(path.relative_to(CONFIGS)))
def test_every_config_loads(path: Path):
    config = load_run_config(path, overrides=[])
    VanillaTransformerConfig(vocab_size=VOCABULARY, **config.model)


def test_there_is_a_config_for_each_row_of_table_3():
    assert {path.name for path in PAPER.iterdir()} == {f"{name}.yaml" for name in TABLE_3}


def test_no_two_rows_train_into_the_same_folder():
    folders = [load_run_config(path, overrides=[]).training.output_dir for path in PAPER.glob("*.yaml")]
    assert len(folders) == len(set(folders))


@pytest.mark.parametrize("name", TABLE_3)
def test_row_is_as_in_the_paper(name: str):
    row = TABLE_3[name]
    run = load_run_config(PAPER / f"{name}.yaml", overrides=[])
    model = VanillaTransformerConfig(vocab_size=run.tokenizer.vocab_size, **run.model)
    assert model.vocab_size == VOCABULARY
    assert model.num_decoder_layers == model.num_layers
    assert run.training.max_updates == row.max_updates
    columns = [field for field in Row._fields if field not in ("parameters", "max_updates")]
    assert {field: getattr(model, field) for field in columns} == {field: getattr(row, field) for field in columns}


@pytest.mark.parametrize("name", [name for name in TABLE_3 if name != "base"])
def test_row_changes_what_it_states(name: str):
    base, row = (yaml.safe_load((PAPER / f"{file}.yaml").read_text(encoding="utf-8")) for file in ("base", name))
    assert row.pop("extends") == "base.yaml"
    for section, values in row.items():
        for key, value in values.items():
            assert base[section].get(key) != value, f"{section}.{key} is as in base"


@pytest.mark.parametrize("name", TABLE_3)
def test_parameters_of_the_row(name: str):
    row = TABLE_3[name]
    run = load_run_config(PAPER / f"{name}.yaml", overrides=[])
    with torch.device("meta"):
        model = VanillaTransformerForConditionalGeneration(VanillaTransformerConfig(vocab_size=VOCABULARY, **run.model))
    assert sum(parameter.numel() for parameter in model.parameters()) == row.parameters  # a tied one counts once


@pytest.mark.parametrize("name", TABLE_3)
def test_table_agrees_with_the_formula(name: str):
    assert TABLE_3[name].parameters == parameters_by_the_paper(TABLE_3[name])
