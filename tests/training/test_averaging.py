# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM

from vanilla_transformer import VanillaTransformerConfig, VanillaTransformerForConditionalGeneration
from vanilla_transformer.training.averaging import average_checkpoints


def save(folder: Path, number: int, **changes) -> Path:
    torch.manual_seed(number)
    values = {"vocab_size": 11, "d_model": 8, "d_ff": 8, "num_layers": 1, "num_heads": 2, **changes}
    VanillaTransformerForConditionalGeneration(VanillaTransformerConfig(**values)).save_pretrained(folder / str(number))
    return folder / str(number)


def test_each_weight_is_the_mean(tmp_path: Path):
    folders = [save(tmp_path, number) for number in range(3)]
    average = average_checkpoints(folders).state_dict()
    parts = [AutoModelForSeq2SeqLM.from_pretrained(folder).state_dict() for folder in folders]
    for name, weight in average.items():
        expected = torch.stack([part[name].double() for part in parts]).mean(dim=0)
        assert torch.allclose(weight.double(), expected, atol=1e-7)


def test_tied_weights_stay_one(tmp_path: Path):
    average = average_checkpoints([save(tmp_path, 1), save(tmp_path, 2)])
    assert average.get_output_embeddings().weight is average.get_input_embeddings().weight


def test_other_models_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="holds another model than"):
        average_checkpoints([save(tmp_path, 1), save(tmp_path, 2, num_heads=4)])


def test_nothing_to_average():
    with pytest.raises(ValueError, match="no checkpoint to average"):
        average_checkpoints([])
