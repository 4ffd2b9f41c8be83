# SPDX-License-Identifier: Apache-2.0
"""Gradient accumulation in transformers' Trainer: the number of micro-batches changes neither loss nor gradient.

`pytest -s tests/test_accumulation.py` prints the figures beside those of transformers' own Marian.
"""

from functools import partial

import pytest
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import MarianConfig, MarianMTModel, Trainer, TrainingArguments

from tests.families import FAMILIES, PAD

STEPS = (1, 2, 4, 8)  # of accumulation
MARIAN = "transformers' Marian"


def pairs() -> list[dict[str, torch.Tensor]]:
    """Eight pairs with targets of 2 to 16 tokens, so that equal micro-batches have unequal numbers of tokens."""
    torch.manual_seed(4)
    lengths = [2, 16, 3, 12, 5, 9, 2, 7]
    return [{"input_ids": torch.randint(3, 31, (n,)), "labels": torch.randint(3, 31, (n,))} for n in lengths]


def collate(rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    sources = pad_sequence([row["input_ids"] for row in rows], batch_first=True, padding_value=PAD)
    labels = pad_sequence([row["labels"] for row in rows], batch_first=True, padding_value=-100)
    return {"input_ids": sources, "attention_mask": sources.ne(PAD).long(), "labels": labels}


def one_update(model, steps: int, folder) -> tuple[float, float]:
    """Loss and gradient norm that Trainer reports for all eight pairs in this many micro-batches."""
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=8 // steps,
        gradient_accumulation_steps=steps,
        max_steps=1,
        learning_rate=0.0,
        max_grad_norm=1e9,  # reported, and not clipped
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = Trainer(model, arguments, train_dataset=pairs(), data_collator=collate)
    trainer.train()
    logged = trainer.state.log_history[0]
    return logged["loss"], logged["grad_norm"]


def single_pass(model) -> tuple[float, float]:
    """The same two from one forward and backward pass, without Trainer."""
    loss = model.train()(**collate(pairs())).loss
    loss.backward()
    gradient = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    return loss.item(), gradient.norm().item()


def tiny_marian() -> MarianMTModel:
    torch.manual_seed(0)
    sizes = {"d_model": 16, "encoder_layers": 2, "decoder_layers": 3, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
    tokens = {"vocab_size": 31, "pad_token_id": PAD, "eos_token_id": 2, "decoder_start_token_id": PAD}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    return MarianMTModel(MarianConfig(**sizes, **tokens, **heads, dropout=0.0, forced_eos_token_id=None))


@pytest.fixture(scope="module")
def figures(tmp_path_factory) -> dict[str, list[tuple[float, float]]]:
    """For each model, loss and gradient norm for each of `STEPS`."""
    folder = tmp_path_factory.mktemp("trainer")
    models = {family.name: partial(family.model, dropout=0.0) for family in FAMILIES} | {MARIAN: tiny_marian}
    return {name: [one_update(new(), steps, folder) for steps in STEPS] for name, new in models.items()}


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_gradient_accumulation_invariance(family, figures):
    expected = single_pass(family.model(dropout=0.0))
    for found in figures[family.name]:
        assert found == pytest.approx(expected, rel=1e-4)


def test_the_figures_are_printed_beside_marians(figures):
    print("\nloss / gradient norm of one update of eight pairs, by accumulation steps:")
    print(f"{'':24}" + "".join(f"{steps:>18}" for steps in STEPS))
    for name, rows in figures.items():
        print(f"{name:24}" + "".join(f"{loss:9.4f} /{norm:7.4f}" for loss, norm in rows))
    assert figures.keys() == {MARIAN} | {family.name for family in FAMILIES}
